//! The form of an archived journal: one file of zstd frames, with an index at its end.
//!
//! Each frame holds entries as JSON lines and carries zstd's checksum. The index is a skippable frame, so the whole is an
//! ordinary zstd file: `zstdcat` shows the journal. Whoever wants entries from a number on reads the index by one range
//! and each frame by one more.
//!
//! The index, all numbers little-endian: for every frame the sequence number of its last entry (8 bytes) and its size
//! (4); then the build's id (16), the number of frames (4), a CRC-32 of all that stands before it in the index (4), and
//! `KilnLog1`.

use crate::{
    domain::id::BuildId,
    store::{
        entries::{UnpackError, unpack},
        journal::Page,
    },
};

/// Text gathered for a frame. What a reader has to read for one entry, and most of what compression can gain.
const FRAME: usize = 1 << 20;
/// Logs are written once and kept long, and by far the most of the time goes elsewhere.
const LEVEL: i32 = 6;
/// A skippable frame, of the sixteen kinds (RFC 8878, section 3.1.2).
const SKIPPABLE: u32 = 0x184D_2A5B;
const MAGIC: [u8; 8] = *b"KilnLog1";
const HEADER: usize = 8;
const ENTRY: usize = 12;
const TRAILER: usize = 32;

/// Why bytes aren't an archived journal, or not this one.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The index isn't one.
    #[error("the index is damaged: {0}")]
    Index(&'static str),
    /// A frame can't be read.
    #[error("the frame of entry {last_seq} is damaged")]
    Frame {
        /// Its last entry.
        last_seq: i64,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// A frame holds something else.
    #[error("the frame of entry {last_seq} holds {found} entries instead of {expected}")]
    Count {
        /// Its last entry.
        last_seq: i64,
        /// Entries in it.
        found: usize,
        /// Entries by the index.
        expected: i64,
    },
    /// A frame can't be compressed, which only happens without memory.
    #[error("a frame can't be compressed")]
    Compress(#[source] std::io::Error),
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) first_seq: i64,
    pub(super) last_seq: i64,
    pub(super) offset: u64,
    pub(super) bytes: u32,
}

/// Writes an archived journal.
pub(super) struct Encoder {
    build: BuildId,
    /// Text gathered for a frame.
    frame: usize,
    compressor: zstd::bulk::Compressor<'static>,
    frames: Vec<(i64, u32)>,
    plain: Vec<u8>,
    last_seq: i64,
}

impl Encoder {
    pub(super) fn new(build: BuildId) -> Result<Self, FormatError> {
        Self::with_frames(build, FRAME)
    }

    fn with_frames(build: BuildId, frame: usize) -> Result<Self, FormatError> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(FormatError::Compress)?;
        compressor
            .set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))
            .map_err(FormatError::Compress)?;
        Ok(Self {
            build,
            frame,
            compressor,
            frames: Vec::new(),
            plain: Vec::new(),
            last_seq: 0,
        })
    }

    /// Sequence number of the last entry that was taken.
    pub(super) const fn last_seq(&self) -> i64 {
        self.last_seq
    }

    /// Takes the next entries, one JSON object a line; the last line of a row may lack its end. Returns what is ready to
    /// be written.
    pub(super) fn push(&mut self, lines: &[u8]) -> Result<Vec<u8>, FormatError> {
        let mut ready = Vec::new();
        for line in lines.split_inclusive(|&byte| byte == b'\n') {
            self.plain.extend_from_slice(line);
            if !line.ends_with(b"\n") {
                self.plain.push(b'\n');
            }
            self.last_seq += 1;
            if self.plain.len() >= self.frame {
                self.end_frame(&mut ready)?;
            }
        }
        Ok(ready)
    }

    fn end_frame(&mut self, out: &mut Vec<u8>) -> Result<(), FormatError> {
        let frame = self.compressor.compress(&self.plain).map_err(FormatError::Compress)?;
        let bytes = u32::try_from(frame.len()).map_err(|_| FormatError::Index("a frame is too large"))?;
        self.frames.push((self.last_seq, bytes));
        self.plain.clear();
        out.extend_from_slice(&frame);
        Ok(())
    }

    /// The rest of the entries, and the index. Returns them with the size of the index.
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, u64), FormatError> {
        let mut out = Vec::new();
        if !self.plain.is_empty() {
            self.end_frame(&mut out)?;
        }
        let begin = out.len();
        let too_many = |_| FormatError::Index("too many frames");
        let content = self.frames.len() * ENTRY + TRAILER;
        out.extend_from_slice(&SKIPPABLE.to_le_bytes());
        out.extend_from_slice(&u32::try_from(content).map_err(too_many)?.to_le_bytes());
        for (last_seq, bytes) in &self.frames {
            out.extend_from_slice(&last_seq.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
        out.extend_from_slice(self.build.0.as_bytes());
        out.extend_from_slice(&u32::try_from(self.frames.len()).map_err(too_many)?.to_le_bytes());
        let crc = crc32fast::hash(&out[begin..]);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&MAGIC);
        let index = (out.len() - begin) as u64;
        Ok((out, index))
    }
}

/// Where the entries are in an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    frames: Vec<Frame>,
}

impl Index {
    /// Reads the index of a build's journal with entries up to `head`, which stands behind `offset` bytes of frames.
    pub(super) fn read(bytes: &[u8], build: BuildId, head: i64, offset: u64) -> Result<Self, FormatError> {
        let damaged = FormatError::Index;
        let short = || damaged("it is too short");
        let (before, magic) = bytes.split_last_chunk::<8>().ok_or_else(short)?;
        let (checked, crc) = before.split_last_chunk::<4>().ok_or_else(short)?;
        if *magic != MAGIC {
            return Err(damaged("it doesn't end as one"));
        }
        if crc32fast::hash(checked) != u32::from_le_bytes(*crc) {
            return Err(damaged("its checksum differs"));
        }
        let (rest, count) = checked.split_last_chunk::<4>().ok_or_else(short)?;
        let (rest, id) = rest.split_last_chunk::<16>().ok_or_else(short)?;
        if id != build.0.as_bytes() {
            return Err(damaged("it is of another build"));
        }
        let entries = rest.get(HEADER..).ok_or_else(short)?;
        let (entries, left) = entries.as_chunks::<ENTRY>();
        if !left.is_empty() || u32::try_from(entries.len()) != Ok(u32::from_le_bytes(*count)) {
            return Err(damaged("its size doesn't fit"));
        }
        let mut frames = Vec::with_capacity(entries.len());
        let (mut last, mut begin) = (0, 0);
        for entry in entries {
            let (last_seq, bytes) = entry.split_first_chunk::<8>().ok_or_else(short)?;
            let last_seq = i64::from_le_bytes(*last_seq);
            let bytes = u32::from_le_bytes(*bytes.first_chunk().ok_or_else(short)?);
            if last_seq <= last {
                return Err(damaged("its entries are out of order"));
            }
            frames.push(Frame {
                first_seq: last + 1,
                last_seq,
                offset: begin,
                bytes,
            });
            last = last_seq;
            begin += u64::from(bytes);
        }
        if last != head || begin != offset {
            return Err(damaged("it doesn't fit the journal"));
        }
        Ok(Self { frames })
    }

    /// The frame with the first entry after `after`.
    pub(super) fn after(&self, after: i64) -> Option<Frame> {
        let position = self.frames.partition_point(|frame| frame.last_seq <= after);
        self.frames.get(position).copied()
    }

    /// All frames, in order.
    pub(super) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Memory that it takes, about.
    pub(super) fn size(&self) -> usize {
        size_of_val(self.frames.as_slice()) + size_of::<Self>()
    }
}

/// The entries of a frame after `after`.
pub(super) fn entries(frame: Frame, bytes: &[u8], after: i64) -> Result<Page, FormatError> {
    let last_seq = frame.last_seq;
    let events = unpack(1, bytes).map_err(|source| FormatError::Frame { last_seq, source })?;
    let expected = last_seq - frame.first_seq + 1;
    if i64::try_from(events.len()) != Ok(expected) {
        return Err(FormatError::Count {
            last_seq,
            found: events.len(),
            expected,
        });
    }
    Ok((frame.first_seq..)
        .zip(events)
        .filter(|(seq, _)| *seq > after)
        .collect())
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        domain::event::{Event, Log, LogStream, StepName},
        store::entries::{pack, plain},
    };

    fn log(text: String) -> Event {
        Event::Log(Log {
            step: StepName::Build,
            stream: LogStream::Stdout,
            at: DateTime::UNIX_EPOCH,
            text,
            partial: false,
            replaced: 0,
        })
    }

    /// The object of a journal whose rows hold these many entries, and the size of its index.
    fn archived(build: BuildId, rows: &[Vec<Event>]) -> (Vec<u8>, u64) {
        let mut encoder = Encoder::with_frames(build, 1000).expect("an encoder");
        let mut object = Vec::new();
        for row in rows {
            let packed = pack(row);
            let lines = plain(packed.codec, &packed.body).expect("packed");
            // Some rows are written without the end of their last line.
            let lines = lines.strip_suffix(b"\n").expect("a line");
            object.extend(encoder.push(lines).expect("takes"));
        }
        let (rest, index) = encoder.finish().expect("ends");
        object.extend(rest);
        (object, index)
    }

    fn index(object: &[u8], index_bytes: u64, build: BuildId, head: i64) -> Result<Index, FormatError> {
        let offset = object.len() as u64 - index_bytes;
        let begin = usize::try_from(offset).expect("small");
        Index::read(&object[begin..], build, head, offset)
    }

    fn range(object: &[u8], frame: Frame) -> &[u8] {
        let begin = usize::try_from(frame.offset).expect("small");
        &object[begin..begin + usize::try_from(frame.bytes).expect("small")]
    }

    /// Rows of entries, some of them so long that there are several frames.
    fn rows() -> impl Strategy<Value = Vec<Vec<Event>>> {
        let text = prop_oneof![
            4 => ".{0,80}".prop_map(|text| text + "\n"),
            1 => (1_usize..9).prop_map(|count| "0123456789abcdef".repeat(count * 10) + "\n"),
        ];
        let row = proptest::collection::vec(text.prop_map(log), 1..6);
        proptest::collection::vec(row, 1..12)
    }

    proptest! {
        #[test]
        fn entries_read_back_from_any_number(rows in rows(), after in 0_i64..80) {
            let build = BuildId::new();
            let (object, index_bytes) = archived(build, &rows);
            let all: Vec<(i64, Event)> = (1..).zip(rows.into_iter().flatten()).collect();
            let head = i64::try_from(all.len()).expect("small");
            let index = index(&object, index_bytes, build, head).expect("an index");
            let mut read = Vec::new();
            let mut position = after;
            while let Some(frame) = index.after(position) {
                let page = entries(frame, range(&object, frame), position).expect("entries");
                position = page.last().expect("a frame holds entries").0;
                read.extend(page);
            }
            let expected: Vec<_> = all.into_iter().filter(|(seq, _)| *seq > after).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn a_changed_byte_is_found(rows in rows(), place in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let build = BuildId::new();
            let head = i64::try_from(rows.iter().flatten().count()).expect("small");
            let (mut object, index_bytes) = archived(build, &rows);
            let place = place.index(object.len());
            object[place] ^= 1 << bit;
            let Ok(index) = index(&object, index_bytes, build, head) else { return Ok(()) };
            let mut position = 0;
            let mut read = Vec::new();
            while let Some(frame) = index.after(position) {
                let Ok(page) = entries(frame, range(&object, frame), position) else { return Ok(()) };
                position = frame.last_seq;
                read.extend(page);
            }
            // A bit may mean nothing; then what is read is what was written.
            let expected: Vec<_> = (1..).zip(rows.into_iter().flatten()).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Index::read(&bytes, BuildId::new(), 1, 0).is_err());
        }
    }

    #[test]
    fn the_whole_is_an_ordinary_zstd_file() {
        let rows = [
            vec![log("one\n".to_owned()), log("two\n".to_owned())],
            vec![log("x".repeat(2000))],
        ];
        let (object, _) = archived(BuildId::new(), &rows);
        let text = zstd::decode_all(object.as_slice()).expect("zstd");
        assert_eq!(text.split(|&byte| byte == b'\n').count(), 4);
    }

    #[test]
    fn the_index_of_another_build_is_refused() {
        let (object, index_bytes) = archived(BuildId::new(), &[vec![log("one\n".to_owned())]]);
        assert!(matches!(
            index(&object, index_bytes, BuildId::new(), 1),
            Err(FormatError::Index("it is of another build"))
        ));
    }
}
