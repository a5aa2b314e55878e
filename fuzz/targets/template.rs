//! Dockerfile templates, with variables of every kind.
#![no_main]

use kiln_agent::fuzzing::render;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|template: &str| {
    let variables = json!({"a": "x", "n": 3, "list": [1, "two", null], "map": {"k": [true]}, "none": null});
    match render(template, &variables) {
        Ok(dockerfile) => assert!(dockerfile.len() <= 1 << 20),
        Err(message) => assert!(message.starts_with("`dockerfile`: "), "{message}"),
    }
});
