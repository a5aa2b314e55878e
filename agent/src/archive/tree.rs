//! What is where in an archive, and whether it may be there. Nothing here touches a file.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::Error;

/// Longest path and longest link, in bytes; the kernel's own limit.
const MAX_PATH: usize = 4096;
/// Longest name; the usual file systems' limit.
const MAX_NAME: usize = 255;
/// How deep folders may be nested.
const MAX_DEPTH: usize = 200;
/// Bytes of names that are kept in all.
const MAX_NAMES: usize = 128 << 20;
/// Links that the kernel follows on one way.
const MAX_FOLLOWED: usize = 40;
/// Names that are looked at in all to follow links.
const MAX_STEPS: usize = 10_000_000;

/// Why an entry may not be in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its path begins at the root of the file system.
    Absolute,
    /// Its path leads upwards.
    Upwards,
    /// Its path can't be one.
    Path,
    /// It is named like something of another kind.
    Twice,
    /// It lies in something that is no folder.
    InFile,
    /// It lies behind a symbolic link.
    BehindLink,
    /// It is a symbolic link that leads out.
    LinkLeadsOut,
    /// It is a symbolic link that leads to itself.
    LinkCircle,
    /// It is a hard link.
    HardLink,
    /// It is a device, a fifo or a socket.
    Device,
    /// It is a sparse file.
    Sparse,
    /// It is something else that only tar knows.
    Unknown,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absolute => "has an absolute path: pack relative paths",
            Self::Upwards => "has a path with `..`: pack from the folder that holds everything",
            Self::Path => "has a path that is empty, too long or nested too deep",
            Self::Twice => "is there twice, as different things",
            Self::InFile => "lies in something that is not a folder",
            Self::BehindLink => "lies behind a symbolic link: pack it where the link leads",
            Self::LinkLeadsOut => {
                "is a symbolic link that leads out of the archive: pack what it leads to (tar's --dereference), or leave it out"
            }
            Self::LinkCircle => "is a symbolic link that leads in a circle: leave it out",
            Self::HardLink => "is a hard link: pack it as a file of its own (GNU tar's --hard-dereference)",
            Self::Device => "is a device, a fifo or a socket: leave it out",
            Self::Sparse => "is packed as a sparse file: pack it without tar's --sparse",
            Self::Unknown => "is neither a file nor a folder nor a symbolic link: leave it out",
        })
    }
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Folder,
    File,
    Link(PathBuf),
}

/// What kind of thing an entry is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Folder,
    File,
    Link(PathBuf),
}

/// The entries so far.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: HashMap<PathBuf, Node>,
    /// Those that are links, in the archive's order.
    links: Vec<PathBuf>,
    names: usize,
}

/// Where an entry goes.
#[derive(Debug)]
pub(super) struct Place {
    /// Its path; empty for the archive's own folder.
    pub(super) path: PathBuf,
    /// Folders that have to be made first, outermost first.
    pub(super) missing: Vec<PathBuf>,
    /// Whether something of the same kind was there.
    pub(super) existed: bool,
}

impl Tree {
    /// Finds the place of an entry, if it may have one.
    pub(super) fn add(&mut self, raw: &[u8], kind: Kind) -> Result<Place, Error> {
        let refused = |why| Error::Entry { path: shown(raw), why };
        let path = relative(raw).map_err(refused)?;
        if let Kind::Link(target) = &kind {
            link_target(target).map_err(refused)?;
        }
        if path.as_os_str().is_empty() {
            return match kind {
                Kind::Folder => Ok(Place {
                    path,
                    missing: Vec::new(),
                    existed: true,
                }),
                Kind::File | Kind::Link(_) => Err(refused(Refusal::Path)),
            };
        }
        let mut missing = Vec::new();
        for folder in path
            .ancestors()
            .skip(1)
            .take_while(|folder| !folder.as_os_str().is_empty())
        {
            match self.nodes.get(folder) {
                Some(Node::Folder) => break,
                Some(Node::File) => return Err(refused(Refusal::InFile)),
                Some(Node::Link(_)) => return Err(refused(Refusal::BehindLink)),
                None => missing.push(folder.to_owned()),
            }
        }
        missing.reverse();
        let existed = match (self.nodes.get(&path), &kind) {
            (None, _) => false,
            (Some(Node::Folder), Kind::Folder)
            | (Some(Node::File), Kind::File)
            | (Some(Node::Link(_)), Kind::Link(_)) => true,
            (Some(_), _) => return Err(refused(Refusal::Twice)),
        };
        for folder in &missing {
            self.insert(folder.clone(), Node::Folder)?;
        }
        let node = match kind {
            Kind::Folder => Node::Folder,
            Kind::File => Node::File,
            Kind::Link(target) => Node::Link(target),
        };
        self.insert(path.clone(), node)?;
        Ok(Place { path, missing, existed })
    }

    fn insert(&mut self, path: PathBuf, node: Node) -> Result<(), Error> {
        self.names += path.as_os_str().len();
        if let Node::Link(target) = &node {
            self.names += path.as_os_str().len() + target.as_os_str().len();
            self.links.push(path.clone());
        }
        if self.names > MAX_NAMES {
            return Err(Error::TooIntricate);
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    /// Follows every link, now that all are known.
    pub(super) fn follow_links(&self) -> Result<(), Error> {
        let mut steps = MAX_STEPS;
        for path in &self.links {
            let Some(Node::Link(target)) = self.nodes.get(path) else {
                continue;
            };
            if let Some(why) = self.follow(path, target, &mut steps)? {
                let path = shown(path.as_os_str().as_bytes());
                return Err(Error::Entry { path, why });
            }
        }
        Ok(())
    }

    fn follow(&self, link: &Path, target: &Path, steps: &mut usize) -> Result<Option<Refusal>, Error> {
        let mut at = link.parent().map(Path::to_owned).unwrap_or_default();
        // What is still to go, the next name last.
        let mut ahead: Vec<&OsStr> = names(target).rev().collect();
        let mut followed = 1;
        while let Some(name) = ahead.pop() {
            *steps = steps.checked_sub(1).ok_or(Error::TooIntricate)?;
            if name == ".." {
                if !at.pop() {
                    return Ok(Some(Refusal::LinkLeadsOut));
                }
                continue;
            }
            at.push(name);
            if let Some(Node::Link(target)) = self.nodes.get(&at) {
                followed += 1;
                if followed > MAX_FOLLOWED {
                    return Ok(Some(Refusal::LinkCircle));
                }
                at.pop();
                ahead.extend(names(target).rev());
            }
        }
        Ok(None)
    }
}

/// See [`super::refused_links`].
pub(super) fn refused_links(
    links: impl IntoIterator<Item = (PathBuf, PathBuf)>,
) -> Result<Vec<(PathBuf, Refusal)>, Error> {
    let mut tree = Tree::default();
    for (path, target) in links {
        tree.insert(path, Node::Link(target))?;
    }
    let mut steps = MAX_STEPS;
    let mut refused = Vec::new();
    for path in &tree.links {
        let Some(Node::Link(target)) = tree.nodes.get(path) else {
            continue;
        };
        let why = match link_target(target) {
            Ok(()) => tree.follow(path, target, &mut steps)?,
            Err(why) => Some(why),
        };
        refused.extend(why.map(|why| (path.clone(), why)));
    }
    Ok(refused)
}

/// The names in a path; those that change nothing are left out.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = &OsStr> {
    let parts = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    parts
        .filter(|part| !part.is_empty() && *part != b".")
        .map(OsStr::from_bytes)
}

/// A path that stays in its folder; empty for the folder itself.
fn relative(raw: &[u8]) -> Result<PathBuf, Refusal> {
    if raw.starts_with(b"/") {
        return Err(Refusal::Absolute);
    }
    if raw.is_empty() || raw.len() > MAX_PATH || raw.contains(&0) {
        return Err(Refusal::Path);
    }
    let mut path = PathBuf::new();
    for (depth, name) in names(Path::new(OsStr::from_bytes(raw))).enumerate() {
        if name == ".." {
            return Err(Refusal::Upwards);
        }
        if name.len() > MAX_NAME || depth >= MAX_DEPTH {
            return Err(Refusal::Path);
        }
        path.push(name);
    }
    Ok(path)
}

/// Whether a link can be judged by following it.
fn link_target(target: &Path) -> Result<(), Refusal> {
    let bytes = target.as_os_str().as_bytes();
    if bytes.starts_with(b"/") {
        return Err(Refusal::LinkLeadsOut);
    }
    if bytes.is_empty() || bytes.len() > MAX_PATH || bytes.contains(&0) || names(target).count() > MAX_DEPTH {
        return Err(Refusal::Path);
    }
    Ok(())
}

/// A path for a message: not too long, and without what could lead a terminal astray.
pub(super) fn shown(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut shown: String = text
        .chars()
        .take(200)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if shown.len() < text.len() && text.chars().nth(200).is_some() {
        shown.push('…');
    }
    shown
}
