//! What a pod leaves behind: a step's report, its records, and the words of builders that failures are told by.
#![no_main]

use kiln::{domain::event::StepName, runner::builder::classify};
use kiln_agent::wire::{
    report::{Exit, Report},
    step::StepRecord,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<StepRecord>(bytes);
    let report = serde_json::from_slice(bytes).unwrap_or_else(|_| Report {
        exit: Exit::Code(1),
        lines: 0,
        bytes: 0,
        commit: None,
        digest: None,
        problem: None,
        failed: None,
        tail: String::from_utf8_lossy(bytes).into_owned(),
    });
    for step in StepName::ALL {
        assert!(!classify(step, &report).message.is_empty());
    }
});
