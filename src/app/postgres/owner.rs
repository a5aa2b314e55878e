//! Whom the server runs as when kiln runs as root.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::{Uid, User, geteuid};

use super::DevPostgresError;

/// A user other than root.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Owner {
    /// Whom to run as: `None` unless kiln runs as root; then whoever owns the server's folder already, else
    /// `postgres`, else `nobody`.
    pub(super) fn of_server(home: &Path) -> Result<Option<Self>, DevPostgresError> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let holder = fs::metadata(home)
            .ok()
            .filter(|metadata| metadata.uid() != 0)
            .and_then(|metadata| User::from_uid(Uid::from_raw(metadata.uid())).ok().flatten());
        let by_name = || {
            ["postgres", "nobody"]
                .iter()
                .find_map(|name| User::from_name(name).ok().flatten())
        };
        let user = holder.or_else(by_name).ok_or(DevPostgresError::NoUser)?;
        Ok(Some(Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        }))
    }

    /// Checks that the user may enter every folder on the way to `path`, by the mode bits.
    pub(super) fn can_reach(&self, path: &Path) -> Result<(), DevPostgresError> {
        let closed = |folder: &&Path| {
            fs::metadata(folder).is_ok_and(|metadata| {
                let bit = match (metadata.uid() == self.uid, metadata.gid() == self.gid) {
                    (true, _) => 0o100,
                    (false, true) => 0o010,
                    (false, false) => 0o001,
                };
                metadata.mode() & bit == 0
            })
        };
        match path.ancestors().find(closed) {
            Some(blocked) => Err(DevPostgresError::OutOfReach {
                user: self.name.clone(),
                blocked: PathBuf::from(blocked),
            }),
            None => Ok(()),
        }
    }
}
