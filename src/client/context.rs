//! A folder as build context: what of it is sent, and the archive in which it travels.
//!
//! The archive is a function of the folder: entries are sorted, owners are dropped, and times are kept to the second,
//! because a Dockerfile's `make` may look at them. Symbolic links stay links; nothing outside of the folder is read.

mod pack;
mod walk;

use std::{
    fs::{self, Metadata},
    io,
    path::{Path, PathBuf},
};

use kiln_agent::archive::refused_links;

use self::walk::walk;
use super::ignore::{IgnoreFile, InvalidPattern};

/// A folder that is to be sent.
#[derive(Debug)]
pub struct Context {
    root: PathBuf,
    entries: Vec<Entry>,
    /// A Dockerfile from outside of the folder, which goes beside it.
    outside: Option<PathBuf>,
    /// The Dockerfile, as the request is to name it.
    pub dockerfile: String,
    /// The context's folder within the archive.
    pub subdir: &'static str,
    /// What is left out because no archive for a build can hold it: sockets, devices, pipes.
    pub left_out: Vec<PathBuf>,
}

#[derive(Debug)]
struct Entry {
    /// Relative to the folder.
    path: PathBuf,
    metadata: Metadata,
}

/// Why a folder can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Something can't be read.
    #[error("can't read {}: {source}", .path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder is something else.
    #[error("{} is not a folder: name the folder that holds the Dockerfile, or a git URL", .0.display())]
    NoFolder(PathBuf),
    /// There is no Dockerfile.
    #[error("there is no Dockerfile at {}: name it with --file", .0.display())]
    NoDockerfile(PathBuf),
    /// A name that can't stand in a request.
    #[error("the name of {} is not UTF-8", .0.display())]
    Name(PathBuf),
    /// A line of the ignore file is no pattern.
    #[error("{}: {source}", .path.display())]
    Ignore {
        /// The ignore file.
        path: PathBuf,
        /// What is wrong with it.
        source: InvalidPattern,
    },
    /// Symbolic links that no archive may hold.
    #[error("the service takes no symbolic links that lead out of the folder or in a circle: {}", listed(.0))]
    Links(Vec<(PathBuf, PathBuf)>),
    /// A file shrank.
    #[error("{} became shorter while it was read: build again once it is complete", .0.display())]
    Changed(PathBuf),
    /// The archive's reader is gone.
    #[error(transparent)]
    Write(io::Error),
}

/// The links, one a line, with where they lead.
fn listed(links: &[(PathBuf, PathBuf)]) -> String {
    let line = |(path, target): &(PathBuf, PathBuf)| format!("\n    {} -> {}", path.display(), target.display());
    let named: String = links.iter().take(NAMED).map(line).collect();
    let more = match links.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("\n    and {more} more"),
    };
    format!("leave them out (.dockerignore), or put what they lead to into the folder{named}{more}")
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> ContextError {
    let path = path.to_owned();
    |source| ContextError::Read { path, source }
}

/// Most links that are named.
const NAMED: usize = 100;
/// The context's folder in an archive that has the Dockerfile beside it.
const BESIDE: &str = "context";
/// Name of a Dockerfile from outside of the context.
const OUTSIDE: &str = "Dockerfile";

impl Context {
    /// Looks at a folder. `dockerfile` is a path as the caller gave it, relative to the working folder as with
    /// `docker build --file`; `Dockerfile` in the context when absent.
    pub fn read(folder: &Path, dockerfile: Option<&Path>) -> Result<Self, ContextError> {
        let root = folder.canonicalize().map_err(read_error(folder))?;
        if !root.is_dir() {
            return Err(ContextError::NoFolder(folder.to_owned()));
        }
        let named = dockerfile.map_or_else(|| folder.join("Dockerfile"), Path::to_owned);
        if !named.is_file() {
            return Err(ContextError::NoDockerfile(named));
        }
        // The file's folder, not the file itself: a link to a Dockerfile elsewhere is one of the context's files.
        let (parent, name) = match (named.parent(), named.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => (Path::new("."), name),
            (Some(parent), Some(name)) => (parent, name),
            _ => return Err(ContextError::NoDockerfile(named)),
        };
        let located = parent.canonicalize().map_err(read_error(parent))?.join(name);
        let inside = located.strip_prefix(&root).ok().map(Path::to_owned);
        let (ignore, ignore_path) = ignore_file(&root, &located)?;
        let mut always = vec![PathBuf::from(".dockerignore")];
        if let Some(inside) = &inside {
            always.push(inside.clone());
            always.extend(ignore_path.strip_prefix(&root).ok().map(Path::to_owned));
        }
        let (entries, left_out) = walk(&root, &ignore, &always)?;
        check_links(&root, &entries)?;
        let (dockerfile, subdir, outside) = match inside {
            Some(path) => {
                let text = path.to_str().ok_or_else(|| ContextError::Name(named.clone()))?;
                (text.to_owned(), "", None)
            }
            None => (format!("/{OUTSIDE}"), BESIDE, Some(located)),
        };
        Ok(Self {
            root,
            entries,
            outside,
            dockerfile,
            subdir,
            left_out,
        })
    }

    /// The folder's name, where it has one that can be shown.
    pub fn name(&self) -> Option<String> {
        Some(self.root.file_name()?.to_str()?.to_owned())
    }

    /// How many files and links are sent.
    pub fn files(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.metadata.is_dir()).count() + usize::from(self.outside.is_some())
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        let files = self.entries.iter().filter(|entry| entry.metadata.is_file());
        files.map(|entry| entry.metadata.len()).sum()
    }

    /// Paths of all entries, in the archive's order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.entries.iter().map(|entry| entry.path.as_path())
    }
}

/// Names all links at once that the service would refuse, by its own rule.
fn check_links(root: &Path, entries: &[Entry]) -> Result<(), ContextError> {
    let mut links = Vec::new();
    for entry in entries.iter().filter(|entry| entry.metadata.is_symlink()) {
        let full = root.join(&entry.path);
        let target = fs::read_link(&full).map_err(read_error(&full))?;
        links.push((entry.path.clone(), target));
    }
    // What is too intricate to be followed is the service's to refuse.
    let refused = refused_links(links.clone()).unwrap_or_default();
    if refused.is_empty() {
        return Ok(());
    }
    let refused: Vec<_> = refused.into_iter().map(|(path, _)| path).collect();
    links.retain(|(path, _)| refused.contains(path));
    Err(ContextError::Links(links))
}

/// The ignore file that holds for a Dockerfile: its own (`x.Dockerfile.dockerignore`), else the context's.
fn ignore_file(root: &Path, dockerfile: &Path) -> Result<(IgnoreFile, PathBuf), ContextError> {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(".dockerignore");
    for path in [PathBuf::from(own), root.join(".dockerignore")] {
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(read_error(&path)(error)),
        };
        let ignore = IgnoreFile::parse(&text).map_err(|source| ContextError::Ignore {
            path: path.clone(),
            source,
        })?;
        return Ok((ignore, path));
    }
    Ok((IgnoreFile::default(), root.join(".dockerignore")))
}

#[cfg(test)]
mod tests;
