//! What builders say of their progress: BuildKit's JSON lines and buildah's text, in any portions.
#![no_main]

use std::io::{Read as _, Seek as _};

use kiln_agent::{
    fuzzing::translate,
    wire::{frame::Frame, plan::Progress},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|output: &[u8]| {
    let Some((&first, output)) = output.split_first() else {
        return;
    };
    let progress = if first & 1 == 0 {
        Progress::BuildkitJson
    } else {
        Progress::Buildah
    };
    let portions: Vec<&[u8]> = output.chunks(usize::from(first) + 1).collect();
    let mut file = tempfile::tempfile().expect("a file");
    translate(progress, &portions, file.try_clone().expect("the same file"));
    let mut log = Vec::new();
    file.rewind().expect("a file");
    file.read_to_end(&mut log).expect("a file");
    let lines = log.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    for (line, number) in lines.zip(1..) {
        let frame = Frame::parse(line).expect("a frame");
        assert_eq!(frame.number, number, "no gap in the numbers");
    }
});
