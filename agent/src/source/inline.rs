//! Files that came with the request.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path},
};

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::step::Failure;

/// Writes the files into an empty folder.
pub(super) fn write(files: &BTreeMap<String, String>, into: &Path) -> Result<(), Failure> {
    for (name, content) in files {
        if !stays_inside(name) {
            return Err(Failure::internal(format!(
                "`{name}` in the plan is not a path within the source folder"
            )));
        }
        let content = BASE64_STANDARD
            .decode(content)
            .map_err(|error| Failure::internal(format!("`{name}` in the plan is not base64: {error}")))?;
        write_file(&into.join(name), &content)
            .map_err(|error| Failure::internal(format!("`{name}` can't be written: {error}")))?;
    }
    Ok(())
}

fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)?;
    fs::set_permissions(path, Permissions::from_mode(0o644))
}

/// The service has checked the paths; what is written where is worth a second look.
fn stays_inside(name: &str) -> bool {
    let mut components = Path::new(name).components().peekable();
    components.peek().is_some() && components.all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn files(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter()
            .map(|(name, text)| ((*name).to_owned(), BASE64_STANDARD.encode(text)))
            .collect()
    }

    #[test]
    fn files_and_their_folders_are_made() {
        let folder = TempDir::new().unwrap();
        write(
            &files(&[("Dockerfile", "FROM scratch\n"), ("a/b/c", "")]),
            folder.path(),
        )
        .unwrap();
        let dockerfile = folder.path().join("Dockerfile");
        assert_eq!(fs::read_to_string(&dockerfile).unwrap(), "FROM scratch\n");
        assert_eq!(fs::metadata(&dockerfile).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read(folder.path().join("a/b/c")).unwrap(), b"");
    }

    #[test]
    fn nothing_leaves_the_folder() {
        let folder = TempDir::new().unwrap();
        for name in ["", "/etc/passwd", "../x", "a/../../x", "a/..", ".."] {
            assert!(write(&files(&[(name, "x")]), folder.path()).is_err(), "{name:?}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn bad_base64_is_refused() {
        let folder = TempDir::new().unwrap();
        let files = BTreeMap::from([("a".to_owned(), "***".to_owned())]);
        assert!(write(&files, folder.path()).is_err());
    }
}
