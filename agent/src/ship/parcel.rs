//! One step's spool, as the shipper sees it: what is to be sent next, what was taken, and what seals it.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use kiln_agent::wire::{
    frame::MAX_TEXT,
    push::{Printed, Seal, SpoolStep, crc32},
};
use memchr::memrchr;
use serde::{Deserialize, Serialize};

use crate::spool::{Folder, Segment, writer::last_frame};

/// Name of [`Taken`] in the step's folder.
const TAKEN: &str = "taken.json";
/// More than a frame takes, and the beginning of one behind it.
const LAST_FRAME: u64 = 2 * (MAX_TEXT as u64 + 256);

/// What is known of the segments that are deleted, for a seal that has to be made without their writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Taken {
    /// Where the first segment that is left begins.
    offset: u64,
    /// Number of the last frame before it.
    lines: u64,
    /// Checksum of all before it.
    crc32: u32,
    /// The service has the seal.
    sealed: bool,
}

/// How a step ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// With the last word of its agent.
    Sealed(Seal),
    /// Without.
    Killed,
}

/// A step's spool on its way.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) step: SpoolStep,
    folder: Folder,
    taken: Taken,
    /// Everything below is durable, as far as is known.
    offset: u64,
    /// The seal that goes with what there is, where some of it was lost.
    cut: Option<Seal>,
    begun: bool,
}

impl Parcel {
    /// Goes on where whoever was here before left off.
    pub(super) fn open(root: &Path, step: SpoolStep) -> io::Result<Self> {
        let folder = Folder::new(root, step);
        let taken: Taken = folder.read(TAKEN)?.unwrap_or_default();
        let mut parcel = Self {
            step,
            begun: folder.has_begun(),
            folder,
            offset: taken.offset,
            taken,
            cut: None,
        };
        parcel.delete_taken()?;
        Ok(parcel)
    }

    /// Everything below is durable, as far as is known.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the service has ever taken something of it.
    pub(super) const fn was_taken(&self) -> bool {
        self.taken.offset > 0 || self.taken.sealed
    }

    /// Whether the service has the seal.
    pub(super) const fn sealed(&self) -> bool {
        self.taken.sealed
    }

    /// Whether the step has begun to write.
    pub(super) fn has_begun(&self) -> bool {
        self.begun || self.folder.has_begun()
    }

    /// Whether the step's agent lives, as far as can be told.
    pub(super) fn has_writer(&self) -> bool {
        self.folder.has_writer()
    }

    /// Whether there is nothing more to send and won't be, provided that steps begin no more.
    pub(super) fn is_over(&self) -> bool {
        self.sealed() || !self.has_begun()
    }

    /// Whether the step has ended, and how; `expected` says that nothing is to be expected of it any more. To be asked
    /// before [`Self::read`], which then reads all that belongs to it.
    pub(super) fn end(&mut self, expected: bool) -> io::Result<Option<End>> {
        self.begun |= self.folder.has_begun();
        if let Some(seal) = self.cut {
            return Ok(Some(End::Sealed(seal)));
        }
        let killed = self.begun && expected && !self.folder.has_writer();
        let seal = self.folder.seal()?.map(End::Sealed);
        Ok(seal.or(killed.then_some(End::Killed)))
    }

    /// The seal of a step, which is made from what there is when its agent was killed.
    pub(super) fn seal_for(&self, end: End) -> io::Result<Seal> {
        match end {
            End::Sealed(seal) => Ok(seal),
            End::Killed => {
                let mut whole = self.taken;
                for segment in self.segments()? {
                    self.count(segment, &mut whole)?;
                }
                Ok(Seal {
                    lines: whole.lines,
                    bytes: whole.offset,
                    crc32: whole.crc32,
                    complete: false,
                })
            }
        }
    }

    /// The next whole frames to send, at most `max` bytes of them; none when there are none yet.
    pub(super) fn read(&self, max: usize) -> io::Result<Vec<u8>> {
        for segment in self.segments()? {
            if segment.end() <= self.offset || segment.start > self.offset {
                continue;
            }
            let mut file = File::open(self.folder.segment(segment.start))?;
            file.seek(SeekFrom::Start(self.offset - segment.start))?;
            let mut frames = Vec::new();
            file.take(max as u64).read_to_end(&mut frames)?;
            frames.truncate(memrchr(b'\n', &frames).map_or(0, |end| end + 1));
            return Ok(frames);
        }
        Ok(Vec::new())
    }

    /// How much the step has printed.
    pub(super) fn printed(&self) -> io::Result<Printed> {
        if let Some(seal) = self.folder.seal()? {
            return Ok(Printed {
                lines: seal.lines,
                all: seal.complete,
            });
        }
        for segment in self.segments()?.iter().rev() {
            let mut file = File::open(self.folder.segment(segment.start))?;
            file.seek(SeekFrom::Start(segment.length.saturating_sub(LAST_FRAME)))?;
            let mut frames = Vec::new();
            file.take(LAST_FRAME).read_to_end(&mut frames)?;
            frames.truncate(memrchr(b'\n', &frames).map_or(0, |end| end + 1));
            if let Some(frame) = last_frame(&frames) {
                return Ok(Printed {
                    lines: frame.number,
                    all: false,
                });
            }
        }
        Ok(Printed {
            lines: self.taken.lines,
            all: false,
        })
    }

    /// The service has everything below `offset`, and the next frames go from there. Says whether they can.
    pub(super) fn advance(&mut self, offset: u64) -> io::Result<bool> {
        if offset < self.taken.offset {
            return Ok(false);
        }
        self.offset = offset;
        self.delete_taken()?;
        Ok(true)
    }

    /// The service has the seal.
    pub(super) fn seal(&mut self) -> io::Result<()> {
        self.taken.sealed = true;
        self.folder.write(TAKEN, &self.taken)?;
        for segment in self.segments()? {
            fs::remove_file(self.folder.segment(segment.start))?;
        }
        Ok(())
    }

    /// There is nothing behind `offset`, whatever the seal says. Says whether that is news.
    pub(super) fn cut(&mut self, seal: &Seal, offset: u64) -> bool {
        let cut = Seal {
            bytes: offset,
            complete: false,
            ..*seal
        };
        self.cut.replace(cut) != Some(cut)
    }

    fn segments(&self) -> io::Result<Vec<Segment>> {
        match self.folder.segments() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            segments => segments,
        }
    }

    /// Deletes the segments that were taken and that nothing is appended to any more.
    fn delete_taken(&mut self) -> io::Result<()> {
        let ended = self.folder.seal()?.is_some();
        let segments = self.segments()?;
        for (at, &segment) in segments.iter().enumerate() {
            let closed = ended || at + 1 < segments.len();
            if !closed || segment.end() > self.offset {
                break;
            }
            // Noted first: what is deleted can't be counted any more.
            if segment.start >= self.taken.offset {
                let mut taken = self.taken;
                self.count(segment, &mut taken)?;
                self.folder.write(TAKEN, &taken)?;
                self.taken = taken;
            }
            fs::remove_file(self.folder.segment(segment.start))?;
        }
        Ok(())
    }

    /// Adds a segment's whole frames.
    fn count(&self, segment: Segment, to: &mut Taken) -> io::Result<()> {
        let mut frames = fs::read(self.folder.segment(segment.start))?;
        frames.truncate(memrchr(b'\n', &frames).map_or(0, |end| end + 1));
        to.offset = segment.start + frames.len() as u64;
        to.crc32 = crc32(to.crc32, &frames);
        if let Some(frame) = last_frame(&frames) {
            to.lines = frame.number;
        }
        Ok(())
    }
}
