//! What fuzz targets call of the program.

use std::{fs::File, time::Instant};

use serde_json::Value;

use crate::{
    capture::sink::{Sink, Writer},
    progress::Translator,
    source::template,
    step::Failure,
    wire::{frame::Stream, plan::Progress},
};

/// What a Dockerfile template becomes, or what its owner is told.
pub fn render(text: &str, variables: &Value) -> Result<Vec<u8>, String> {
    let variables = serde_json::from_value(variables.clone()).unwrap_or_default();
    template::rendered(text, "Dockerfile", &variables).map_err(|failure| match failure {
        Failure::Problem(_, problem) => problem.message,
        other => format!("{other:?}"),
    })
}

/// Writes to `log` what becomes of a builder's output that arrives in these portions.
pub fn translate(progress: Progress, portions: &[&[u8]], log: File) {
    let sink = Sink::new(log, None, || 7);
    let now = Instant::now();
    let mut translator = Translator::new(progress, Writer(1));
    for portion in portions {
        let mut batch = sink.batch(Writer(1), Stream::Stdout);
        translator.take(portion, now, &mut batch);
        translator.tick(now, &mut batch);
        // What can't be written is missed by whoever reads the log.
        let _ = batch.send();
    }
    let mut batch = sink.batch(Writer(1), Stream::Stdout);
    translator.finish(&mut batch);
    let _ = batch.send();
}
