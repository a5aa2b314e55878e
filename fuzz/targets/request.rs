//! Bodies of `POST /v1/builds`.
#![no_main]

use kiln::domain::spec::{BuildSpec, Limits, request::BuildRequest};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let Ok(document) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    match BuildRequest::read(&document, &Limits::default()) {
        Ok(request) => {
            let stored = serde_json::to_value(&request.spec).expect("serialises");
            let read: BuildSpec = serde_json::from_value(stored).expect("what is stored can be read");
            assert_eq!(read, request.spec);
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                assert!(
                    error.pointer.is_empty() || error.pointer.starts_with('/'),
                    "{}",
                    error.pointer
                );
                assert!(!error.detail.is_empty());
            }
        }
    }
});
