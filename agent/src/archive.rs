//! Archives from outside: tar, plain or compressed by gzip, told apart by content. The service checks what is sent to
//! it by the rules by which the agent unpacks, so they are here, once.
//!
//! Nothing in an archive may lie or lead outside of its folder. Files, folders and symbolic links that stay inside are
//! what a source is made of; hard links, devices and everything else is refused. No entry may lie behind a symbolic
//! link, so that unpacking never follows one; and where links lead is followed through all of them, because links that
//! stay inside one by one can lead out together.

mod tree;
mod unpack;
mod walk;

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::tree::Refusal;

/// How much an archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes of the archive as it comes.
    pub bytes: u64,
    /// Bytes of all files once unpacked.
    pub unpacked_bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
}

/// What an archive holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of all files.
    pub unpacked_bytes: u64,
}

/// Why an archive can't be used. The messages are for whoever made it and say what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is something else.
    #[error("is not a tar archive, plain or compressed by gzip{}", .0.map(|what| format!(": it is {what}")).unwrap_or_default())]
    NotAnArchive(Option<&'static str>),
    /// It ends too early.
    #[error("is cut off: send it again, whole")]
    Truncated,
    /// Its compression or its structure is broken.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// There is no file in it.
    #[error("holds no file")]
    Empty,
    /// More entries than allowed.
    #[error("holds more than {0} files, folders and links: leave out what the build doesn't need")]
    TooManyEntries(u64),
    /// More bytes than allowed.
    #[error("unpacks to more than {0} bytes: leave out what the build doesn't need")]
    TooLarge(u64),
    /// The names alone are too much.
    #[error("holds names and links that are too long or too many to follow")]
    TooIntricate,
    /// An entry that isn't allowed.
    #[error("holds `{path}`, which {why}")]
    Entry {
        /// Where.
        path: String,
        /// Why not.
        why: Refusal,
    },
    /// It can't be read.
    #[error("can't be read: {0}")]
    Read(#[source] io::Error),
    /// What it holds can't be written.
    #[error("can't be unpacked: `{path}`: {source}")]
    Write {
        /// What.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Reads an archive to its end and makes sure that it can be unpacked.
pub fn check(archive: impl Read, limits: &Limits) -> Result<Summary, Error> {
    walk::walk(archive, limits, &mut Nowhere)
}

/// Which of a folder's symbolic links (their paths in it, and what is written in them) no archive of it may hold, and why.
/// Unlike [`check`], which stops at the first.
pub fn refused_links(links: impl IntoIterator<Item = (PathBuf, PathBuf)>) -> Result<Vec<(PathBuf, Refusal)>, Error> {
    tree::refused_links(links)
}

/// Unpacks an archive into an empty folder. After an error the folder holds a part of it.
pub fn unpack(archive: impl Read, into: &Path, limits: &Limits) -> Result<Summary, Error> {
    walk::walk(archive, limits, &mut unpack::Folder::new(into))
}

/// Where entries go. The paths have been checked, and come after the folders that they are in.
trait Target {
    /// A folder, which isn't there yet.
    fn folder(&mut self, path: &Path) -> io::Result<()>;
    /// The mode of a folder, which is there.
    fn folder_mode(&mut self, path: &Path, mode: u32) -> io::Result<()>;
    /// A file. An earlier one of this name is replaced.
    fn file(&mut self, path: &Path, meta: Meta, content: &mut dyn Read) -> io::Result<()>;
    /// A symbolic link. An earlier one of this name is replaced.
    fn link(&mut self, path: &Path, target: &Path) -> io::Result<()>;
}

/// What is kept of a file beside its content.
#[derive(Clone, Copy, Debug)]
struct Meta {
    /// Permission bits.
    mode: u32,
    /// Seconds since 1970.
    modified: u64,
}

/// For looking at an archive only.
struct Nowhere;

impl Target for Nowhere {
    fn folder(&mut self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn folder_mode(&mut self, _: &Path, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn file(&mut self, _: &Path, _: Meta, content: &mut dyn Read) -> io::Result<()> {
        io::copy(content, &mut io::sink()).map(drop)
    }

    fn link(&mut self, _: &Path, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
