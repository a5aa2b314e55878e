//! The framed log of a step, as it comes from the kubelet or a file: in any portions, the same lines.
#![no_main]

use bytes::Bytes;
use kiln::runner::kubernetes::fuzzing::lines;
use kiln_agent::wire::frame::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|log: &[u8]| {
    let Some((&first, log)) = log.split_first() else {
        return;
    };
    for line in log.split(|&byte| byte == b'\n') {
        if let Some(frame) = Frame::parse(line) {
            let mut encoded = Vec::new();
            frame.encode(&mut encoded);
            assert_eq!(encoded.pop(), Some(b'\n'));
            assert_eq!(Frame::parse(&encoded), Some(frame));
        }
    }
    let whole = Bytes::copy_from_slice(log);
    let portions: Vec<Bytes> = log.chunks(usize::from(first) + 1).map(Bytes::copy_from_slice).collect();
    assert_eq!(lines(&portions), lines(&[whole]), "in portions of {first} + 1");
});
