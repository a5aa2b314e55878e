//! Which entries of a folder belong to the context.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::FileTypeExt as _},
    path::{Path, PathBuf},
};

use super::{ContextError, Entry, read_error};
use crate::client::ignore::{IgnoreFile, Inherited};

/// What of a folder is sent, in the archive's order, and what is left out because no archive for a build can hold it.
/// `always` is sent whatever the ignore file says.
pub(super) fn walk(
    root: &Path,
    ignore: &IgnoreFile,
    always: &[PathBuf],
) -> Result<(Vec<Entry>, Vec<PathBuf>), ContextError> {
    let mut walk = Walk {
        root,
        ignore,
        always,
        entries: Vec::new(),
        left_out: Vec::new(),
    };
    walk.folder(Path::new(""), &Inherited::default(), &mut Vec::new())?;
    Ok((walk.entries, walk.left_out))
}

struct Walk<'a> {
    root: &'a Path,
    ignore: &'a IgnoreFile,
    /// Sent whatever the ignore file says: the builder reads them.
    always: &'a [PathBuf],
    entries: Vec<Entry>,
    left_out: Vec<PathBuf>,
}

impl Walk<'_> {
    /// Collects a folder's content. `pending` are the folders above that are left out themselves, and are sent only when
    /// something in them is.
    fn folder(&mut self, folder: &Path, inherited: &Inherited, pending: &mut Vec<Entry>) -> Result<(), ContextError> {
        let full = self.root.join(folder);
        let listed = fs::read_dir(&full).and_then(|entries| {
            let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
            names.collect::<io::Result<Vec<_>>>()
        });
        let mut names = listed.map_err(read_error(&full))?;
        names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for name in names {
            self.entry(folder.join(name), inherited, pending)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, inherited: &Inherited, pending: &mut Vec<Entry>) -> Result<(), ContextError> {
        let full = self.root.join(&path);
        let metadata = fs::symlink_metadata(&full).map_err(read_error(&full))?;
        let text = path.to_string_lossy();
        let (excluded, inherited) = self.ignore.excludes(&text, inherited);
        if metadata.is_dir() {
            let needed = self.always.iter().any(|always| always.starts_with(&path));
            if excluded && !needed && !self.ignore.may_keep_below(&text) {
                return Ok(());
            }
            let entry = Entry {
                path: path.clone(),
                metadata,
            };
            if excluded {
                let depth = pending.len();
                pending.push(entry);
                self.folder(&path, &inherited, pending)?;
                pending.truncate(depth);
            } else {
                self.keep(entry, pending);
                self.folder(&path, &inherited, pending)?;
            }
            return Ok(());
        }
        if excluded && !self.always.contains(&path) {
            return Ok(());
        }
        let kind = metadata.file_type();
        if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
            self.left_out.push(path);
            return Ok(());
        }
        self.keep(Entry { path, metadata }, pending);
        Ok(())
    }

    fn keep(&mut self, entry: Entry, pending: &mut Vec<Entry>) {
        self.entries.append(pending);
        self.entries.push(entry);
    }
}
