//! `.dockerignore`: its patterns, and what they say about a path.
#![no_main]

use kiln::client::ignore::{IgnoreFile, Inherited};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (path, file) = text.split_once('\0').unwrap_or(("src/main.rs", text));
    match IgnoreFile::parse(file) {
        Ok(ignore) => {
            let mut inherited = Inherited::default();
            let mut ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
            ends.push(path.len());
            for end in ends {
                let (excluded, below) = ignore.excludes(&path[..end], &inherited);
                if excluded {
                    ignore.may_keep_below(&path[..end]);
                }
                inherited = below;
            }
        }
        Err(error) => assert!((1..=file.lines().count()).contains(&error.line), "{error}"),
    }
});
