//! Writes a step's spool: segments, and what happens when there is no room for more.
//!
//! The spool is bounded. While the shipper deletes what the service has, a writer waits for room, and with it whoever
//! prints. When nothing moves for a while the build is worth more than its log: lines are dropped, counted, and the
//! place is marked by one [`Stream::Truncated`] frame. A full disk is treated alike, but told apart.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use kiln_agent::wire::{
    frame::{Frame, Stream},
    push::{Seal, crc32},
};
use memchr::{memchr, memrchr};

use super::Folder;

/// How long a segment becomes, more or less.
const SEGMENT: u64 = 4 << 20;
/// How often to look whether there is room again.
const LOOK: Duration = Duration::from_millis(20);
/// How often to try a disk that was full.
const TRY: Duration = Duration::from_secs(1);

/// Kept so that the end of a log fits a full disk.
const RESERVE: &str = "reserve";
const RESERVE_SIZE: usize = 16 << 10;

/// How much a spool may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of all segments.
    pub(crate) bytes: u64,
    /// Bytes of one segment, more or less.
    pub(crate) segment: u64,
    /// How long the shipper may delete nothing until lines are dropped.
    pub(crate) patience: Duration,
}

impl Limits {
    /// For a spool of that many bytes. It has at least a few segments, or there would never be room.
    pub(crate) fn new(bytes: u64, patience: Duration) -> Self {
        Self {
            bytes,
            segment: SEGMENT.min(bytes / 8),
            patience,
        }
    }
}

/// Appends to a step's spool.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: Folder,
    limits: Limits,
    segment: Option<OpenSegment>,
    /// Length of the spool, deleted segments included.
    bytes: u64,
    crc32: u32,
    /// Number of the last frame.
    lines: u64,
    /// At least what the segments hold: some may have been deleted since they were counted.
    held: u64,
    full: Option<Full>,
    /// Number and reason of the last line that was dropped since the last frame.
    dropped: Option<(u64, Reason)>,
    reserve: PathBuf,
    /// Says that the writer lives.
    _lock: File,
}

#[derive(Debug)]
struct OpenSegment {
    file: File,
    length: u64,
}

/// There is no room.
#[derive(Clone, Copy, Debug)]
struct Full {
    reason: Reason,
    /// When the shipper was last seen to delete something, or else when this began.
    moved: Instant,
    /// The first segment at that time.
    first: Option<u64>,
    looked: Instant,
    tried: Instant,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Limit,
    Disk,
}

impl Spool {
    /// Begins a step's spool. There must not be one: its frames were numbered from 1, too.
    pub(crate) fn create(folder: Folder, limits: Limits) -> io::Result<Self> {
        folder.make()?;
        if !folder.segments()?.is_empty() || folder.seal()?.is_some() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let lock = folder.lock()?;
        let reserve = folder.path().join(RESERVE);
        fs::write(&reserve, [0; RESERVE_SIZE])?;
        Ok(Self {
            folder,
            limits,
            segment: None,
            bytes: 0,
            crc32: 0,
            lines: 0,
            held: 0,
            full: None,
            dropped: None,
            reserve,
            _lock: lock,
        })
    }

    /// Appends whole frames, or drops some of them when there is no room and waiting has no end in sight; `hurry` says
    /// that nobody waits any more. An error means that the spool can't be written for another reason.
    pub(crate) fn append(&mut self, mut frames: &[u8], hurry: &AtomicBool) -> io::Result<()> {
        while !frames.is_empty() {
            let (chunk, rest) = frames.split_at(self.fitting(frames));
            if !self.wait_for_room(chunk.len() as u64, hurry)? {
                self.drop_frames(chunk);
                frames = rest;
                continue;
            }
            let written = match self.mark_dropped(at_ms(chunk)) {
                Ok(()) => self.write(chunk),
                Err(error) => Err((0, error)),
            };
            match written {
                Ok(()) => {
                    self.full = None;
                    frames = rest;
                }
                Err((kept, error)) if no_space(&error) => {
                    self.disk_is_full();
                    frames = &frames[kept..];
                }
                Err((_, error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Seals the spool. What was dropped last is marked, for which a full disk still has room.
    pub(crate) fn finish(&mut self, now_ms: u64) -> io::Result<Seal> {
        // Nothing else needs it any more.
        fs::remove_file(&self.reserve)?;
        self.mark_dropped(now_ms)?;
        let seal = Seal {
            lines: self.lines,
            bytes: self.bytes,
            crc32: self.crc32,
            complete: true,
        };
        self.folder.write_seal(&seal)?;
        Ok(seal)
    }

    /// How many bytes of these go into the open segment: whole frames, and at least one.
    fn fitting(&self, frames: &[u8]) -> usize {
        let filled = self.segment.as_ref().map_or(0, |segment| segment.length);
        let room = self.limits.segment.checked_sub(filled).filter(|&room| room > 0);
        let room = usize::try_from(room.unwrap_or(self.limits.segment)).unwrap_or(usize::MAX);
        if frames.len() <= room {
            return frames.len();
        }
        let end = memrchr(b'\n', &frames[..room]).or_else(|| memchr(b'\n', frames));
        end.map_or(frames.len(), |end| end + 1)
    }

    /// Waits until `length` bytes fit, as long as that makes sense. Says whether they do.
    fn wait_for_room(&mut self, length: u64, hurry: &AtomicBool) -> io::Result<bool> {
        loop {
            if self.full.is_none() {
                if self.held + length <= self.limits.bytes {
                    return Ok(true);
                }
                // Perhaps there is room since the last count.
                let first = self.count()?;
                if self.held + length <= self.limits.bytes {
                    return Ok(true);
                }
                self.full = Some(Full::since(Instant::now(), Reason::Limit, first));
            }
            if self.look(length)? {
                return Ok(true);
            }
            let waited = self.full.map_or(Duration::ZERO, |full| full.moved.elapsed());
            if waited >= self.limits.patience || hurry.load(Ordering::Relaxed) {
                return Ok(false);
            }
            thread::sleep(LOOK);
        }
    }

    /// Looks, now and then, whether a full spool has room again.
    fn look(&mut self, length: u64) -> io::Result<bool> {
        let now = Instant::now();
        let Some(mut full) = self.full else { return Ok(true) };
        if now < full.looked + LOOK {
            return Ok(false);
        }
        full.looked = now;
        let first = self.count()?;
        let moved = first != full.first;
        if moved {
            full.moved = now;
            full.first = first;
        }
        let fits = self.held + length <= self.limits.bytes;
        let room = match full.reason {
            Reason::Limit => fits,
            Reason::Disk => fits && (moved || now >= full.tried + TRY),
        };
        if room && full.reason == Reason::Disk {
            full.tried = now;
        }
        self.full = Some(full);
        Ok(room)
    }

    fn disk_is_full(&mut self) {
        let now = Instant::now();
        match &mut self.full {
            Some(full) if full.reason == Reason::Disk => full.tried = now,
            _ => {
                let first = self.folder.segments().ok().and_then(|all| Some(all.first()?.start));
                self.full = Some(Full::since(now, Reason::Disk, first));
            }
        }
    }

    /// Counts what the segments hold, and says where the first begins.
    fn count(&mut self) -> io::Result<Option<u64>> {
        let segments = self.folder.segments()?;
        self.held = segments.iter().map(|segment| segment.length).sum();
        Ok(segments.first().map(|segment| segment.start))
    }

    fn drop_frames(&mut self, frames: &[u8]) {
        let reason = self.full.map_or(Reason::Limit, |full| full.reason);
        if let Some(frame) = last_frame(frames) {
            self.dropped = Some((frame.number, reason));
        }
    }

    /// Says how many lines were dropped, in a frame in their place.
    fn mark_dropped(&mut self, at_ms: u64) -> io::Result<()> {
        let Some((number, reason)) = self.dropped else {
            return Ok(());
        };
        let lines = number.saturating_sub(self.lines);
        let plural = if lines == 1 { " was" } else { "s were" };
        let text = match reason {
            Reason::Limit => format!(
                "{lines} line{plural} dropped: the service did not take the log, and no more than {} of it may wait in the pod",
                size(self.limits.bytes)
            ),
            Reason::Disk => format!("{lines} line{plural} dropped: the disk that the log waits on is full"),
        };
        let mut frame = Vec::new();
        Frame {
            number,
            at_ms,
            stream: Stream::Truncated,
            partial: false,
            text: text.as_bytes(),
        }
        .encode(&mut frame);
        self.write(&frame).map_err(|(_, error)| error)?;
        self.dropped = None;
        Ok(())
    }

    /// Writes whole frames. After an error as many bytes of them are in the spool as it says, whole frames again.
    fn write(&mut self, frames: &[u8]) -> Result<(), (usize, io::Error)> {
        let segment = self.open().map_err(|error| (0, error))?;
        let mut written = 0;
        let outcome = loop {
            match segment.file.write(&frames[written..]) {
                Ok(0) => break Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => break Err(error),
            }
            if written == frames.len() {
                break Ok(());
            }
        };
        // A reader may have seen whole frames, so these stay.
        let kept = memrchr(b'\n', &frames[..written]).map_or(0, |end| end + 1);
        if kept < written {
            let length = segment.length + kept as u64;
            // Whatever keeps it from being cut, the spool is of no use.
            segment
                .file
                .set_len(length)
                .map_err(|error| (0, io::Error::other(error)))?;
        }
        segment.length += kept as u64;
        self.bytes += kept as u64;
        self.held += kept as u64;
        self.crc32 = crc32(self.crc32, &frames[..kept]);
        if let Some(frame) = last_frame(&frames[..kept]) {
            self.lines = frame.number;
        }
        outcome.map_err(|error| (kept, error))
    }

    /// The segment to append to.
    fn open(&mut self) -> io::Result<&mut OpenSegment> {
        let segment = match self.segment.take() {
            Some(segment) if segment.length < self.limits.segment => segment,
            _ => OpenSegment {
                file: OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o644)
                    .open(self.folder.segment(self.bytes))?,
                length: 0,
            },
        };
        Ok(self.segment.insert(segment))
    }
}

impl Full {
    const fn since(now: Instant, reason: Reason, first: Option<u64>) -> Self {
        Self {
            reason,
            moved: now,
            first,
            looked: now,
            tried: now,
        }
    }
}

fn no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The last of some whole frames.
pub(crate) fn last_frame(frames: &[u8]) -> Option<Frame<'_>> {
    let last = frames.strip_suffix(b"\n")?;
    Frame::parse(&last[memrchr(b'\n', last).map_or(0, |end| end + 1)..])
}

/// When the first of some frames was read.
fn at_ms(frames: &[u8]) -> u64 {
    let first = memchr(b'\n', frames).map(|end| &frames[..end]);
    first.and_then(Frame::parse).map_or(0, |frame| frame.at_ms)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests;
