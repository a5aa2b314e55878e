//! Reading an archive entry by entry. The headers that only extend the next one are read here, because their sizes are
//! the archive's to choose: whoever reads them whole can be made to fill the memory.

use std::{
    cell::Cell,
    ffi::OsString,
    io::{self, BufRead, BufReader, ErrorKind, Read},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    rc::Rc,
};

use flate2::bufread::MultiGzDecoder;
use tar::{Archive, EntryType, Header, PaxExtensions};

use super::{
    Error, Limits, Meta, Summary, Target,
    tree::{Kind, Place, Refusal, Tree, shown},
};

/// Largest header that extends the next one, in bytes.
const MAX_EXTENSION: u64 = 64 << 10;

/// What tar adds to an entry at most, in bytes, beside names that are out of the ordinary: a header and padding.
const OVERHEAD: u64 = 1024;

/// What may follow an archive's end, in bytes: tar fills up its last record, and `--append` may leave old blocks.
const MAX_TRAILER: u64 = 16 << 20;

/// Beginnings of what is taken for an archive now and then.
const OTHERS: &[(&[u8], &str)] = &[
    (b"PK\x03\x04", "a zip file"),
    (b"PK\x05\x06", "a zip file"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ\0", "compressed by xz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file"),
    (b"<!DOCTYPE", "a web page"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"--", "a form: send the file as the body itself"),
];

/// Takes an archive to `target`, entry by entry.
pub(super) fn walk(archive: impl Read, limits: &Limits, target: &mut dyn Target) -> Result<Summary, Error> {
    let mut archive = BufReader::with_capacity(64 << 10, archive);
    let start = peek(&mut archive)?;
    if let Some((_, what)) = OTHERS.iter().find(|(sign, _)| start.starts_with(sign)) {
        return Err(Error::NotAnArchive(Some(what)));
    }
    // The third byte is the method, of which there is one.
    if start.starts_with(b"\x1f\x8b\x08") {
        walk_tar(MultiGzDecoder::new(archive), true, limits, target)
    } else {
        walk_tar(archive, false, limits, target)
    }
}

fn peek(archive: &mut impl BufRead) -> Result<Vec<u8>, Error> {
    let start = archive.fill_buf().map_err(Error::Read)?;
    if start.is_empty() {
        return Err(Error::Empty);
    }
    Ok(start[..start.len().min(16)].to_vec())
}

/// What a header in front of an entry says about it.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<u64>,
}

fn walk_tar(tar: impl Read, compressed: bool, limits: &Limits, target: &mut dyn Target) -> Result<Summary, Error> {
    let left = Rc::new(Cell::new(
        limits
            .unpacked_bytes
            .saturating_add(limits.entries.saturating_mul(OVERHEAD))
            .saturating_add(MAX_TRAILER),
    ));
    let mut archive = Archive::new(Metered {
        inner: tar,
        left: Rc::clone(&left),
    });
    // What fails to be read tells which limit it was.
    let failed = |error: io::Error, first: bool| match error.kind() {
        // gzip says itself that it isn't whole, however early that is.
        ErrorKind::UnexpectedEof if compressed && left.get() > 0 => Error::Truncated,
        _ => read_error(error, first, left.get() == 0, limits),
    };
    let mut walk = Walk {
        tree: Tree::default(),
        summary: Summary::default(),
        files: 0,
        limits,
        target,
    };
    let mut extension = Extension::default();
    let mut first = true;
    for entry in archive.entries().map_err(|error| failed(error, true))?.raw(true) {
        let mut entry = entry.map_err(|error| failed(error, first))?;
        first = false;
        let header = entry.header().clone();
        let size = header.size().map_err(|error| failed(error, false))?;
        match header.entry_type() {
            EntryType::GNULongName => extension.path = Some(text(&mut entry, size).map_err(|error| error.or(failed))?),
            EntryType::GNULongLink => extension.link = Some(text(&mut entry, size).map_err(|error| error.or(failed))?),
            EntryType::XHeader => {
                let records = extended(&mut entry, size).map_err(|error| error.or(failed))?;
                extension.read(&records)?;
            }
            EntryType::XGlobalHeader => {
                let records = extended(&mut entry, size).map_err(|error| error.or(failed))?;
                let mut global = Extension::default();
                global.read(&records)?;
                if global.path.is_some() || global.link.is_some() || global.size.is_some() {
                    return Err(Error::Damaged("a global header names a path or a size".to_owned()));
                }
            }
            kind => {
                let extension = std::mem::take(&mut extension);
                walk.entry(kind, &header, extension, size, &mut entry)
                    .map_err(|error| error.or(failed))?;
            }
        }
    }
    let mut rest = archive.into_inner();
    // To the very end: only there it shows whether what was compressed is whole.
    io::copy(&mut rest, &mut io::sink()).map_err(|error| failed(error, first))?;
    if walk.files == 0 {
        return Err(Error::Empty);
    }
    walk.tree.follow_links()?;
    Ok(walk.summary)
}

struct Walk<'a> {
    tree: Tree,
    summary: Summary,
    files: u64,
    limits: &'a Limits,
    target: &'a mut dyn Target,
}

impl Walk<'_> {
    fn entry(
        &mut self,
        kind: EntryType,
        header: &Header,
        extension: Extension,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), Fault> {
        self.summary.entries += 1;
        if self.summary.entries > self.limits.entries {
            return Err(Error::TooManyEntries(self.limits.entries).into());
        }
        let path = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let refused = |why| {
            let path = shown(&path);
            Fault::Is(Error::Entry { path, why })
        };
        if extension.size.is_some_and(|real| real != size) {
            return Err(Error::Damaged(format!("`{}` has two sizes", shown(&path))).into());
        }
        let mode = header.mode().unwrap_or(0o644);
        match kind {
            // Before there were folders among the types, a slash at the end made one.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => self.folder(&path, mode),
            EntryType::Directory => self.folder(&path, mode),
            EntryType::Regular | EntryType::Continuous => {
                self.summary.unpacked_bytes = self.summary.unpacked_bytes.saturating_add(size);
                if self.summary.unpacked_bytes > self.limits.unpacked_bytes {
                    return Err(Error::TooLarge(self.limits.unpacked_bytes).into());
                }
                self.files += 1;
                let place = self.tree.add(&path, Kind::File)?;
                self.make_folders(&place)?;
                let modified = extension.modified.unwrap_or_else(|| header.mtime().unwrap_or(0));
                let mut content = Counted {
                    inner: content,
                    bytes: 0,
                    error: None,
                };
                let written = self.target.file(&place.path, Meta { mode, modified }, &mut content);
                if let Some(error) = content.error {
                    return Err(Fault::Reading(error));
                }
                if content.bytes < size {
                    return Err(Error::Truncated.into());
                }
                written.map_err(writing(&place.path))
            }
            EntryType::Symlink => {
                let link = extension
                    .link
                    .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
                let link = PathBuf::from(OsString::from_vec(link.unwrap_or_default()));
                let place = self.tree.add(&path, Kind::Link(link.clone()))?;
                self.make_folders(&place)?;
                self.target.link(&place.path, &link).map_err(writing(&place.path))
            }
            EntryType::Link => Err(refused(Refusal::HardLink)),
            EntryType::Char | EntryType::Block | EntryType::Fifo => Err(refused(Refusal::Device)),
            EntryType::GNUSparse => Err(refused(Refusal::Sparse)),
            _ => Err(refused(Refusal::Unknown)),
        }
    }

    fn folder(&mut self, path: &[u8], mode: u32) -> Result<(), Fault> {
        let place = self.tree.add(path, Kind::Folder)?;
        self.make_folders(&place)?;
        if !place.existed {
            self.target.folder(&place.path).map_err(writing(&place.path))?;
        }
        // The folder that everything goes into is whoever made it's.
        if place.path.as_os_str().is_empty() {
            return Ok(());
        }
        self.target.folder_mode(&place.path, mode).map_err(writing(&place.path))
    }

    fn make_folders(&mut self, place: &Place) -> Result<(), Fault> {
        for folder in &place.missing {
            self.target.folder(folder).map_err(writing(folder))?;
        }
        Ok(())
    }
}

impl Extension {
    fn read(&mut self, records: &[u8]) -> Result<(), Error> {
        let damaged = || Error::Damaged("an extended header can't be read".to_owned());
        for record in PaxExtensions::new(records) {
            let record = record.map_err(|_| damaged())?;
            let value = record.value_bytes();
            let number = || {
                std::str::from_utf8(value)
                    .ok()
                    .and_then(|value| value.parse::<u64>().ok())
            };
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number().ok_or_else(damaged)?),
                // Seconds with a fraction; before 1970 is as good as 1970.
                b"mtime" => {
                    let whole = value.split(|byte| *byte == b'.').next().unwrap_or_default();
                    let whole = std::str::from_utf8(whole).ok();
                    self.modified = whole.and_then(|whole| whole.parse().ok()).or(Some(0));
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    let path = shown(self.path.as_deref().unwrap_or(b"a file"));
                    return Err(Error::Entry {
                        path,
                        why: Refusal::Sparse,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A name that didn't fit into the header; a NUL ends it.
fn text(entry: &mut impl Read, size: u64) -> Result<Vec<u8>, Fault> {
    let mut text = extended(entry, size)?;
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    Ok(text)
}

fn extended(entry: &mut impl Read, size: u64) -> Result<Vec<u8>, Fault> {
    if size > MAX_EXTENSION {
        return Err(Error::TooIntricate.into());
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(Fault::Reading)?;
    if (bytes.len() as u64) < size {
        return Err(Error::Truncated.into());
    }
    Ok(bytes)
}

/// Why an entry was not taken: known, or to be told from how reading failed.
enum Fault {
    Is(Error),
    Reading(io::Error),
}

impl Fault {
    fn or(self, failed: impl FnOnce(io::Error, bool) -> Error) -> Error {
        match self {
            Self::Is(error) => error,
            Self::Reading(error) => failed(error, false),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Is(error)
    }
}

fn writing(path: &Path) -> impl FnOnce(io::Error) -> Fault {
    use std::os::unix::ffi::OsStrExt;
    let path = shown(path.as_os_str().as_bytes());
    move |source| Fault::Is(Error::Write { path, source })
}

/// What it means that reading failed.
fn read_error(error: io::Error, first: bool, spent: bool, limits: &Limits) -> Error {
    if spent {
        return Error::TooLarge(limits.unpacked_bytes);
    }
    match error.kind() {
        // The first block isn't a header of tar's.
        ErrorKind::UnexpectedEof | ErrorKind::Other | ErrorKind::InvalidData | ErrorKind::InvalidInput if first => {
            Error::NotAnArchive(None)
        }
        ErrorKind::UnexpectedEof => Error::Truncated,
        ErrorKind::Other | ErrorKind::InvalidData | ErrorKind::InvalidInput => {
            let text = error.to_string();
            if text.contains("EOF") {
                Error::Truncated
            } else {
                Error::Damaged(text)
            }
        }
        _ => Error::Read(error),
    }
}

/// Counts what is read of an entry, and keeps the error, so that it isn't mistaken for one of writing.
struct Counted<'a> {
    inner: &'a mut dyn Read,
    bytes: u64,
    error: Option<io::Error>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(read) => {
                self.bytes += read as u64;
                Ok(read)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let same = io::Error::from(error.kind());
                self.error = Some(error);
                Err(same)
            }
        }
    }
}

/// Ends reading when an archive turns out to be larger than it may be, whatever its headers say.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::other("too much"));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        self.left.set(left - read as u64);
        Ok(read)
    }
}
