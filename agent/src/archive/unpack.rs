//! Writing what an archive holds into a folder.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::fcntl::OFlag;

use super::{Meta, Target};

/// A folder that is being filled.
pub(super) struct Folder<'a> {
    into: &'a Path,
}

impl<'a> Folder<'a> {
    pub(super) const fn new(into: &'a Path) -> Self {
        Self { into }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.into.join(path)
    }
}

impl Target for Folder<'_> {
    fn folder(&mut self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o755).create(self.at(path))
    }

    fn folder_mode(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        // Whoever is to fill and to remove it must be able to.
        fs::set_permissions(self.at(path), Permissions::from_mode(mode & 0o777 | 0o700))
    }

    fn file(&mut self, path: &Path, meta: Meta, content: &mut dyn Read) -> io::Result<()> {
        let path = self.at(path);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(path)?;
        io::copy(content, &mut file)?;
        file.set_permissions(Permissions::from_mode(meta.mode & 0o777 | 0o600))?;
        let modified = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(meta.modified));
        // What no file system can hold is left as it is.
        modified.map_or(Ok(()), |modified| file.set_modified(modified).or(Ok(())))
    }

    fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        let path = self.at(path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(target, path)
    }
}
