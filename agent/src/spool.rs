//! A step's frames on disk, between the agent that writes them and the one that ships them.
//!
//! The spool has a folder per step. Its segments are named by the offset of their first byte, hold whole frames and
//! follow on one another without a hole, so what there is shows by the names. The writer only ever appends; the shipper
//! deletes segments from the front. Neither asks the other, and either may be killed.

pub(crate) mod writer;

use std::{
    fs::{self, File, Permissions, TryLockError},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use kiln_agent::wire::push::{Seal, SpoolStep};

/// A file in the spool's root: steps end when it is there.
const CANCEL: &str = "cancel";
/// A file in the spool's root: once it is there, no step begins any more, and the shipper is to come to an end.
const OVER: &str = "over";
/// The step's [`Seal`], written as the last thing.
const END: &str = "end.json";
/// Locked by the step's agent as long as it lives.
const LOCK: &str = "lock";
/// Digits of the largest offset.
const NAME_DIGITS: usize = 20;

/// The file that ends the steps once it is there.
pub(crate) fn cancel_file(root: &Path) -> PathBuf {
    root.join(CANCEL)
}

/// The file that ends the shipper once it is there.
pub(crate) fn over_file(root: &Path) -> PathBuf {
    root.join(OVER)
}

/// One step's part of the spool.
#[derive(Clone, Debug)]
pub(crate) struct Folder(PathBuf);

/// A piece of a step's spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Offset of its first byte.
    pub(crate) start: u64,
    /// How long it is so far.
    pub(crate) length: u64,
}

impl Segment {
    /// Offset behind its last byte.
    pub(crate) const fn end(self) -> u64 {
        self.start + self.length
    }
}

impl Folder {
    /// The folder of a step below the spool's root.
    pub(crate) fn new(root: &Path, step: SpoolStep) -> Self {
        Self(root.join(step.as_str()))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder. Containers of a pod may run as different users, and the shipper deletes what the step wrote.
    pub(crate) fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        fs::set_permissions(&self.0, Permissions::from_mode(0o777))
    }

    /// Takes the spool for its writer, who keeps what this returns.
    pub(crate) fn lock(&self) -> io::Result<File> {
        // Under its own name it is locked from the first moment on.
        let unlocked = self.0.join(format!("{LOCK}.tmp"));
        let file = File::create(&unlocked)?;
        file.try_lock()?;
        fs::rename(unlocked, self.0.join(LOCK))?;
        Ok(file)
    }

    /// Whether the step has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.0.join(LOCK).exists()
    }

    /// Whether the step's agent lives, as far as can be told.
    pub(crate) fn has_writer(&self) -> bool {
        let lock = File::open(self.0.join(LOCK));
        lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// The segments in their order. Those that are deleted meanwhile are left out.
    pub(crate) fn segments(&self) -> io::Result<Vec<Segment>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let Some(start) = entry.file_name().to_str().and_then(segment_start) else {
                continue;
            };
            match entry.metadata() {
                Ok(metadata) => segments.push(Segment {
                    start,
                    length: metadata.len(),
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        segments.sort_unstable_by_key(|segment| segment.start);
        Ok(segments)
    }

    /// The file of the segment that begins at this offset.
    pub(crate) fn segment(&self, start: u64) -> PathBuf {
        self.0.join(format!("{start:0NAME_DIGITS$}.log"))
    }

    /// The seal, once the step's agent has written it.
    pub(crate) fn seal(&self) -> io::Result<Option<Seal>> {
        self.read(END)
    }

    /// Seals the spool.
    pub(crate) fn write_seal(&self, seal: &Seal) -> io::Result<()> {
        self.write(END, seal)
    }

    /// Reads a JSON document; none where there is no such file.
    pub(crate) fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.0.join(name)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a JSON document, which is there as a whole or not at all.
    pub(crate) fn write(&self, name: &str, value: &impl serde::Serialize) -> io::Result<()> {
        let unfinished = self.0.join(format!("{name}.tmp"));
        fs::write(&unfinished, serde_json::to_vec(value)?)?;
        fs::rename(unfinished, self.0.join(name))
    }
}

fn segment_start(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == NAME_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn segments_come_in_the_order_of_their_offsets() {
        let root = TempDir::new().unwrap();
        let folder = Folder::new(root.path(), SpoolStep::Build);
        assert_eq!(folder.segments().unwrap_err().kind(), io::ErrorKind::NotFound);
        folder.make().unwrap();
        for (start, text) in [(1_000_000_000_000, "xx"), (0, "xxxxx"), (5, "")] {
            fs::write(folder.segment(start), text).unwrap();
        }
        for other in [
            "7.log",
            "end.json.tmp",
            "0000000000000000000x.log",
            "00000000000000000007",
        ] {
            fs::write(folder.path().join(other), "x").unwrap();
        }
        let found: Vec<_> = folder
            .segments()
            .unwrap()
            .iter()
            .map(|found| (found.start, found.end()))
            .collect();
        assert_eq!(found, [(0, 5), (5, 5), (1_000_000_000_000, 1_000_000_000_002)]);
    }

    #[test]
    fn the_seal_is_there_or_not() {
        let root = TempDir::new().unwrap();
        let folder = Folder::new(root.path(), SpoolStep::Source);
        folder.make().unwrap();
        assert_eq!(folder.seal().unwrap(), None);
        let seal = Seal {
            lines: 1,
            bytes: 2,
            crc32: 3,
            complete: true,
        };
        folder.write_seal(&seal).unwrap();
        assert_eq!(folder.seal().unwrap(), Some(seal));
    }
}
