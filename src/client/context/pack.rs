//! The archive of a folder.

use std::{
    ffi::OsStr,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use flate2::{Compression, GzBuilder};
use nix::fcntl::OFlag;
use tar::{EntryType, Header};

use super::{Context, ContextError, OUTSIDE, read_error};

impl Context {
    /// Writes the archive, a gzipped tar, and tells how many bytes of the folder are in it so far.
    pub fn pack<W: Write>(&self, out: W, mut packed: impl FnMut(u64)) -> Result<W, ContextError> {
        // Without a name and a time in it, the same content gives the same bytes.
        let gzip = GzBuilder::new().write(out, Compression::fast());
        let mut archive = tar::Builder::new(gzip);
        if let Some(path) = &self.outside {
            let metadata = fs::metadata(path).map_err(read_error(path))?;
            append_file(&mut archive, path, Path::new(OUTSIDE), &metadata, &mut packed)?;
        }
        for entry in &self.entries {
            let source = self.root.join(&entry.path);
            let name = Path::new(self.subdir).join(&entry.path);
            let metadata = &entry.metadata;
            if metadata.is_file() {
                append_file(&mut archive, &source, &name, metadata, &mut packed)?;
                continue;
            }
            let mut header = header(metadata);
            if metadata.is_dir() {
                header.set_entry_type(EntryType::Directory);
                archive.append_data(&mut header, &name, io::empty())
            } else {
                header.set_entry_type(EntryType::Symlink);
                let target = fs::read_link(&source).map_err(read_error(&source))?;
                archive.append_link(&mut header, &name, &target)
            }
            .map_err(ContextError::Write)?;
        }
        let gzip = archive.into_inner().map_err(ContextError::Write)?;
        gzip.finish().map_err(ContextError::Write)
    }
}

fn header(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

fn append_file<W: Write>(
    archive: &mut tar::Builder<W>,
    source: &Path,
    name: &Path,
    metadata: &Metadata,
    packed: &mut impl FnMut(u64),
) -> Result<(), ContextError> {
    // A file that became a link in the meantime isn't followed, unless it was named as the Dockerfile.
    let follow = name.as_os_str() == OsStr::new(OUTSIDE);
    let flags = if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((flags | OFlag::O_NONBLOCK).bits())
        .open(source)
        .map_err(read_error(source))?;
    let mut header = header(metadata);
    header.set_entry_type(EntryType::Regular);
    header.set_size(metadata.len());
    let mut content = Content {
        file,
        left: metadata.len(),
        failed: None,
        packed,
    };
    let written = archive.append_data(&mut header, name, &mut content);
    match (content.failed, written) {
        (Some(error), _) => Err(ContextError::Read {
            path: source.to_owned(),
            source: error,
        }),
        (None, Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(ContextError::Changed(source.to_owned()))
        }
        (None, written) => written.map_err(ContextError::Write),
    }
}

/// A file's first bytes, as many as its header promises.
struct Content<'a, F> {
    file: File,
    left: u64,
    /// Why it can't be read; kept apart from why the archive can't be written.
    failed: Option<io::Error>,
    packed: &'a mut F,
}

impl<F: FnMut(u64)> Read for Content<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        match self.file.read(&mut buffer[..wanted]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                self.left -= read as u64;
                (self.packed)(read as u64);
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}
