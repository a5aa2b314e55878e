use std::sync::Arc;

use kiln_agent::wire::push::SpoolStep;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

static WAITED_FOR: AtomicBool = AtomicBool::new(false);
static HURRY: AtomicBool = AtomicBool::new(true);

fn limits(bytes: u64, segment: u64) -> Limits {
    Limits {
        bytes,
        segment,
        patience: Duration::ZERO,
    }
}

fn spool(limits: Limits) -> (TempDir, Folder, Spool) {
    let root = TempDir::new().unwrap();
    let folder = Folder::new(root.path(), SpoolStep::Build);
    let spool = Spool::create(folder.clone(), limits).unwrap();
    (root, folder, spool)
}

fn frame(number: u64, length: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    Frame {
        number,
        at_ms: number,
        stream: Stream::Stdout,
        partial: false,
        text: &vec![b'a' + u8::try_from(number % 26).unwrap(); length],
    }
    .encode(&mut frame);
    frame
}

/// Takes away what the spool holds, as the shipper does: all but the open segment, unless that is closed.
fn ship(folder: &Folder, shipped: &mut Vec<u8>, all: bool) {
    let segments = folder.segments().unwrap();
    let count = if all {
        segments.len()
    } else {
        segments.len().saturating_sub(1)
    };
    for segment in &segments[..count] {
        assert_eq!(segment.start, shipped.len() as u64, "segments follow on one another");
        let path = folder.segment(segment.start);
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "segments hold whole frames");
        shipped.extend(bytes);
        fs::remove_file(path).unwrap();
    }
}

/// What a reader makes of a spool: the frames in their order, and how many lines it is told were dropped.
fn read(spool: &[u8]) -> (Vec<Vec<u8>>, u64) {
    let (mut held, mut dropped, mut frames) = (0, 0, Vec::new());
    for line in spool.split_inclusive(|&byte| byte == b'\n') {
        let frame = Frame::parse(line.strip_suffix(b"\n").unwrap()).unwrap();
        if frame.stream == Stream::Truncated {
            let missing = frame.number - held;
            let text = std::str::from_utf8(frame.text).unwrap();
            assert!(text.starts_with(&format!("{missing} line")), "{text}");
            dropped += missing;
        } else {
            assert_eq!(frame.number, held + 1);
            frames.push(line.to_vec());
        }
        held = frame.number;
    }
    (frames, dropped)
}

#[test]
fn a_line_that_fits_is_not_dropped() {
    let (_root, folder, mut spool) = spool(limits(1 << 20, 1 << 17));
    let frames: Vec<u8> = (1..=1000).flat_map(|number| frame(number, 100)).collect();
    spool.append(&frames, &WAITED_FOR).unwrap();
    let seal = spool.finish(0).unwrap();
    assert_eq!((seal.lines, seal.bytes), (1000, frames.len() as u64));
    assert_eq!(seal.crc32, crc32(0, &frames));
    assert_eq!(folder.seal().unwrap(), Some(seal));
    let mut shipped = Vec::new();
    ship(&folder, &mut shipped, true);
    assert!(shipped == frames);
    let mut left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["end.json", "lock"]);
    assert!(folder.has_begun() && folder.has_writer());
    drop(spool);
    assert!(!folder.has_writer());
}

#[test]
fn a_spool_is_begun_once() {
    let (_root, folder, mut spool) = spool(limits(1 << 20, 1 << 17));
    spool.append(&frame(1, 1), &WAITED_FOR).unwrap();
    let error = Spool::create(folder, limits(1 << 20, 1 << 17)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn a_writer_waits_while_the_shipper_gets_on() {
    let patient = Limits {
        patience: Duration::from_mins(5),
        ..limits(2000, 500)
    };
    let (_root, folder, mut spool) = spool(patient);
    let written: Vec<u8> = (1..=500).flat_map(|number| frame(number, 20)).collect();
    let over = Arc::new(AtomicBool::new(false));
    let shipper = thread::spawn({
        let (folder, over) = (folder.clone(), Arc::clone(&over));
        move || {
            let mut shipped = Vec::new();
            while !over.load(Ordering::Relaxed) {
                assert!(
                    folder
                        .segments()
                        .unwrap()
                        .iter()
                        .map(|segment| segment.length)
                        .sum::<u64>()
                        <= 2000
                );
                ship(&folder, &mut shipped, false);
                thread::yield_now();
            }
            ship(&folder, &mut shipped, true);
            shipped
        }
    });
    spool.append(&written, &WAITED_FOR).unwrap();
    spool.finish(0).unwrap();
    over.store(true, Ordering::Relaxed);
    assert!(shipper.join().unwrap() == written);
}

#[test]
fn nobody_who_hurries_waits() {
    let patient = Limits {
        patience: Duration::from_mins(5),
        ..limits(100, 50)
    };
    let (_root, folder, mut spool) = spool(patient);
    for number in 1..=10 {
        spool.append(&frame(number, 20), &HURRY).unwrap();
    }
    let seal = spool.finish(0).unwrap();
    assert_eq!(seal.lines, 10);
    let mut shipped = Vec::new();
    ship(&folder, &mut shipped, true);
    let (frames, dropped) = read(&shipped);
    assert_eq!(frames.len() as u64 + dropped, 10);
    assert!(dropped > 0);
}

#[test]
fn a_disk_that_is_full_is_told_apart() {
    let (_root, folder, mut spool) = spool(limits(1 << 20, 1000));
    spool.append(&frame(1, 10), &WAITED_FOR).unwrap();
    let length = spool.bytes;
    // The next segment can't be written.
    spool.segment = None;
    std::os::unix::fs::symlink("/dev/full", folder.segment(length)).unwrap();
    spool
        .append(&[frame(2, 10), frame(3, 10)].concat(), &WAITED_FOR)
        .unwrap();
    spool.append(&frame(4, 10), &WAITED_FOR).unwrap();
    fs::remove_file(folder.segment(length)).unwrap();
    spool.segment = None;
    let seal = spool.finish(77).unwrap();
    assert_eq!(seal.lines, 4);
    let mut shipped = Vec::new();
    ship(&folder, &mut shipped, true);
    let text = String::from_utf8(shipped).unwrap();
    assert!(
        text.ends_with("\n4 77 t. 3 lines were dropped: the disk that the log waits on is full\n"),
        "{text}"
    );
}

proptest! {
    #[test]
    fn what_is_printed_is_in_the_spool_or_counted(
        portions in prop::collection::vec((prop::collection::vec(0_usize..60, 0..8), any::<bool>()), 1..30),
        bytes in 100_u64..600,
        segment in 1_u64..200,
    ) {
        let (_root, folder, mut spool) = spool(limits(bytes, segment));
        let (mut printed, mut shipped, mut number) = (Vec::new(), Vec::new(), 0);
        for (lengths, shipping) in &portions {
            let mut portion = Vec::new();
            for &length in lengths {
                number += 1;
                let frame = frame(number, length);
                portion.extend_from_slice(&frame);
                printed.push(frame);
            }
            spool.append(&portion, &WAITED_FOR).unwrap();
            let held: u64 = folder.segments().unwrap().iter().map(|segment| segment.length).sum();
            prop_assert!(held <= bytes + 200, "{} bytes", held);
            if *shipping {
                // Some time passes.
                if let Some(full) = &mut spool.full {
                    full.looked -= LOOK;
                }
                ship(&folder, &mut shipped, false);
            }
        }
        let seal = spool.finish(0).unwrap();
        ship(&folder, &mut shipped, true);
        let (frames, dropped) = read(&shipped);
        prop_assert_eq!(frames.len() as u64 + dropped, number);
        prop_assert!(frames.iter().all(|frame| printed.contains(frame)));
        prop_assert_eq!(seal, Seal { lines: number, bytes: shipped.len() as u64, crc32: crc32(0, &shipped), complete: true });
    }
}
