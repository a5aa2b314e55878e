//! Archives. What is unpacked is what was checked, and nothing gets or leads out of the folder.
#![no_main]

use std::{fs, path::Path};

use kiln_agent::archive::{Limits, check, unpack};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    unpacked_bytes: 1 << 20,
    entries: 100,
};

fuzz_target!(|archive: &[u8]| {
    let mut archive = archive.to_vec();
    mend(&mut archive);
    let checked = check(&archive[..], &LIMITS);
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    fs::create_dir(&root).expect("made");
    let unpacked = unpack(&archive[..], &root, &LIMITS);
    match (&checked, &unpacked) {
        (Ok(checked), Ok(unpacked)) => assert_eq!(checked, unpacked),
        (Err(checked), Err(unpacked)) => assert_eq!(checked.to_string(), unpacked.to_string()),
        // What no file system can hold.
        (Ok(_), Err(error @ kiln_agent::archive::Error::Write { .. })) => {
            assert!(error.to_string().contains("name too long"), "{error}");
        }
        (checked, unpacked) => panic!("checked: {checked:?}, unpacked: {unpacked:?}"),
    }
    assert_eq!(
        fs::read_dir(folder.path()).expect("listed").count(),
        1,
        "something is beside the folder"
    );
    if unpacked.is_ok() {
        stays_inside(&root, &root);
    }
});

/// Gives headers that the fuzzer has changed the checksums that tar wants, or none would ever be read.
fn mend(archive: &mut [u8]) {
    for block in archive.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

fn stays_inside(root: &Path, folder: &Path) {
    for entry in fs::read_dir(folder).expect("listed") {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            stays_inside(root, &entry.path());
        } else if kind.is_symlink() {
            // A link to nothing can't be followed.
            if let Ok(target) = entry.path().canonicalize() {
                let root = root.canonicalize().expect("exists");
                assert!(
                    target.starts_with(&root),
                    "{} leads to {}",
                    entry.path().display(),
                    target.display()
                );
            }
        } else {
            assert!(kind.is_file());
        }
    }
}
