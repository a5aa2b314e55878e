//! Whether the fetched source holds the build context and the Dockerfile. A repository's symbolic links may lead
//! anywhere, so what counts is where a path ends up.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
};

use kiln_agent::wire::{plan::SourcePlan, report::ProblemKind};

use crate::step::Failure;

/// Most candidates to name for a Dockerfile that isn't there.
const MAX_CANDIDATES: usize = 5;

/// Most files and folders to look at for them.
const MAX_VISITED: usize = 10_000;

/// Checks the source folder against the plan. Returns where the Dockerfile really is.
pub(super) fn check(plan: &SourcePlan) -> Result<PathBuf, Failure> {
    let root = fs::canonicalize(&plan.into)
        .map_err(|error| Failure::internal(format!("the source folder can't be read: {error}")))?;
    let context = context(&root, &plan.subdir).map_err(|why| {
        let message = format!("`source.subdir`: `{}` {why}", plan.subdir);
        Failure::problem(ProblemKind::Source, message)
    })?;
    let (folder, name) = match plan.dockerfile.strip_prefix('/') {
        Some(name) => (&root, name),
        None => (&context, plan.dockerfile.as_str()),
    };
    dockerfile(&root, folder, name).map_err(|why| {
        let mut message = format!("`dockerfile`: `{}` {why}", plan.dockerfile);
        if folder == &context && !plan.subdir.is_empty() {
            message = format!(
                "{message} (looked for in `{}`, the `source.subdir`; one outside of it is named from the source's root, with a `/` in front)",
                plan.subdir
            );
        }
        let candidates = candidates(folder);
        if candidates.is_empty() {
            message.push_str("; there is no file with a name like Dockerfile");
        } else {
            message = format!("{message}; did you mean `{}`?", candidates.join("`, `"));
        }
        Failure::problem(ProblemKind::Dockerfile, message)
    })
}

fn context(root: &Path, subdir: &str) -> Result<PathBuf, &'static str> {
    let context = resolve(root, &root.join(subdir))?;
    if context.is_dir() {
        Ok(context)
    } else {
        Err("is not a folder")
    }
}

fn dockerfile(root: &Path, folder: &Path, name: &str) -> Result<PathBuf, &'static str> {
    let path = resolve(root, &folder.join(name))?;
    if path.is_file() { Ok(path) } else { Err("is not a file") }
}

/// Where `path` ends up, which must be within `root`.
fn resolve(root: &Path, path: &Path) -> Result<PathBuf, &'static str> {
    let real = fs::canonicalize(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "does not exist in the source",
        _ => "can't be read",
    })?;
    if real.starts_with(root) {
        Ok(real)
    } else {
        Err("is a symbolic link that leads out of the source")
    }
}

/// Files below `folder` with a name like Dockerfile, those near the top first.
fn candidates(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut visited = 0;
    let mut folders = VecDeque::from([top.to_path_buf()]);
    while let Some(folder) = folders.pop_front() {
        let mut entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            visited += 1;
            if visited > MAX_VISITED || found.len() == MAX_CANDIDATES {
                return found;
            }
            let name = entry.file_name().to_string_lossy().to_lowercase();
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && name != ".git" => folders.push_back(path),
                Ok(kind) if kind.is_file() && (name.contains("dockerfile") || name.contains("containerfile")) => {
                    let shown = path.strip_prefix(top).unwrap_or(&path);
                    found.push(shown.to_string_lossy().into_owned());
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use kiln_agent::wire::plan::SourceKind;
    use tempfile::TempDir;

    use super::*;

    /// A source folder with these files; a name that ends in a slash makes a folder.
    fn source(names: &[&str]) -> TempDir {
        let folder = TempDir::new().unwrap();
        for name in names {
            let path = folder.path().join(name);
            if name.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "FROM scratch\n").unwrap();
            }
        }
        folder
    }

    fn checked(folder: &TempDir, subdir: &str, dockerfile: &str) -> Result<(), (ProblemKind, String)> {
        let plan = SourcePlan {
            into: folder.path().to_path_buf(),
            from: SourceKind::Inline {
                files: std::collections::BTreeMap::new(),
            },
            subdir: subdir.to_owned(),
            dockerfile: dockerfile.to_owned(),
            template: None,
            mask: Vec::new(),
        };
        check(&plan).map(drop).map_err(|failure| match failure {
            Failure::Problem(_, problem) => (problem.kind, problem.message),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn what_is_there_is_found() {
        let folder = source(&["Dockerfile", "app/docker/Dockerfile.prod"]);
        assert_eq!(checked(&folder, "", "Dockerfile"), Ok(()));
        assert_eq!(checked(&folder, "app", "docker/Dockerfile.prod"), Ok(()));
        assert_eq!(checked(&folder, "app", "/Dockerfile"), Ok(()));
    }

    #[test]
    fn a_missing_dockerfile_names_others() {
        let folder = source(&["deploy/Dockerfile", "web/web.dockerfile", "readme", ".git/Dockerfile"]);
        let (kind, message) = checked(&folder, "", "Dockerfile").unwrap_err();
        assert_eq!(kind, ProblemKind::Dockerfile);
        assert_eq!(
            message,
            "`dockerfile`: `Dockerfile` does not exist in the source; did you mean `deploy/Dockerfile`, `web/web.dockerfile`?"
        );
        let (_, message) = checked(&folder, "deploy", "Containerfile").unwrap_err();
        assert!(
            message.contains("`source.subdir`") && message.contains("did you mean `Dockerfile`"),
            "{message}"
        );
    }

    #[test]
    fn at_most_five_are_named() {
        let names: Vec<String> = (0..9).map(|n| format!("{n}/Dockerfile")).collect();
        let folder = source(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let (_, message) = checked(&folder, "", "x").unwrap_err();
        assert_eq!(message.matches("/Dockerfile").count(), MAX_CANDIDATES, "{message}");
    }

    #[test]
    fn a_folder_is_no_dockerfile_and_a_file_no_context() {
        let folder = source(&["Dockerfile/", "file"]);
        let (kind, message) = checked(&folder, "", "Dockerfile").unwrap_err();
        assert_eq!(kind, ProblemKind::Dockerfile);
        assert!(message.contains("is not a file; there is no file"), "{message}");
        let (kind, message) = checked(&folder, "file", "x").unwrap_err();
        assert_eq!(kind, ProblemKind::Source);
        assert_eq!(message, "`source.subdir`: `file` is not a folder");
        let (_, message) = checked(&folder, "gone", "x").unwrap_err();
        assert_eq!(message, "`source.subdir`: `gone` does not exist in the source");
    }

    #[test]
    fn links_may_not_lead_out() {
        let outside = source(&["Dockerfile"]);
        let folder = source(&["real/Dockerfile"]);
        let link = |target: &Path, name: &str| symlink(target, folder.path().join(name)).unwrap();
        link(outside.path(), "out");
        link(&outside.path().join("Dockerfile"), "out.dockerfile");
        link(Path::new("real"), "in");
        link(Path::new("dangling"), "nowhere");
        let (kind, message) = checked(&folder, "out", "Dockerfile").unwrap_err();
        assert_eq!((kind, message.contains("leads out")), (ProblemKind::Source, true));
        let (kind, message) = checked(&folder, "", "out.dockerfile").unwrap_err();
        assert_eq!((kind, message.contains("leads out")), (ProblemKind::Dockerfile, true));
        assert_eq!(checked(&folder, "in", "Dockerfile"), Ok(()));
        assert!(checked(&folder, "nowhere", "Dockerfile").is_err());
    }
}
