//! Finds the server programs. Debian keeps them out of `PATH`, one folder for each major version.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const DEBIAN: &str = "/usr/lib/postgresql";

/// A folder with `initdb` and `postgres`.
#[derive(Debug)]
pub(super) struct Programs(PathBuf);

/// There is no Postgres that can be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotInstalled {
    /// None at all.
    #[error("Postgres isn't installed: apt-get install postgresql")]
    Any,
    /// The data were made by another major version.
    #[error(
        "the database in {} was made by Postgres {version}, which isn't installed: apt-get install postgresql-{version}, or remove the folder to begin anew",
        .data.display()
    )]
    Version {
        /// The major version that made the data.
        version: String,
        /// Where they are.
        data: PathBuf,
    },
}

impl Programs {
    /// The programs for the files in `data`; the newest when there are none yet.
    pub(super) fn find(data: &Path) -> Result<Self, NotInstalled> {
        let installed = candidates().filter_map(|folder| Some((major_version(&folder)?, folder)));
        let found = match fs::read_to_string(data.join("PG_VERSION")) {
            Ok(version) => {
                let version = version.trim();
                let mut matching = installed.filter(|(major, _)| major.to_string() == version);
                matching.next().ok_or_else(|| NotInstalled::Version {
                    version: version.to_owned(),
                    data: data.to_owned(),
                })?
            }
            Err(_) => installed.max_by_key(|(major, _)| *major).ok_or(NotInstalled::Any)?,
        };
        Ok(Self(found.1))
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.0.join("initdb")
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.0.join("postgres")
    }
}

/// Folders that may hold the programs.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let debian = fs::read_dir(DEBIAN)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"));
    env::split_paths(&path)
        .chain(debian)
        .filter(|folder| folder.is_absolute())
        .collect::<Vec<_>>()
        .into_iter()
}

/// The major version of the Postgres in a folder, if one is there: `postgres (PostgreSQL) 15.18 (Debian …)`.
fn major_version(folder: &Path) -> Option<u32> {
    if !folder.join("initdb").exists() {
        return None;
    }
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_version(text: &str) -> Option<u32> {
    let version = text.split(' ').nth(2)?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, version) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18\n", Some(18)),
            ("postgres (PostgreSQL) 19beta1\n", Some(19)),
            ("something else", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text.trim_end()), version, "{text}");
        }
    }

    #[test]
    fn data_of_a_version_that_is_not_there_names_the_package() {
        let data = tempfile::tempdir().expect("temporary folder");
        fs::write(data.path().join("PG_VERSION"), "9\n").expect("written");
        let error = Programs::find(data.path()).expect_err("version 9 can't be found");
        assert!(error.to_string().contains("apt-get install postgresql-9"), "{error}");
    }
}
