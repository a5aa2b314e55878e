//! What a builder says about one of its own steps, as JSON in a frame of its own kind: it has a number like every
//! line of output, so that its place among them is known and its loss shows.

use serde::{Deserialize, Serialize};

/// Longest name, in bytes.
pub const MAX_NAME: usize = 1024;
/// Longest error, in bytes.
pub const MAX_ERROR: usize = 2048;

/// A step of a builder began or ended. BuildKit calls it a vertex; for buildah it is an instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    /// Number within the build step, from 1, in the order in which they began.
    pub vertex: u32,
    /// The builder's name for it, such as `[2/3] RUN make`; at most [`MAX_NAME`] bytes.
    pub name: String,
    /// What happened to it.
    pub phase: StepPhase,
    /// At its end: whether its result was there already.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cached: bool,
    /// At its end: how long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// After a failure: the builder's words, at most [`MAX_ERROR`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What can happen to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepPhase {
    /// It began, or began again.
    Started,
    /// It ended well.
    Succeeded,
    /// It ended badly, or was given up because another did.
    Failed,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// Cuts the middle out of a text that is longer than `max` bytes: the beginning says what it is about, the end what
/// happened.
pub fn clip_middle(text: &str, max: usize) -> String {
    const MARK: &str = " … ";
    if text.len() <= max {
        return text.to_owned();
    }
    let half = max.saturating_sub(MARK.len()) / 2;
    let head = &text[..text.floor_char_boundary(half)];
    let tail = &text[text.ceil_char_boundary(text.len() - half)..];
    format!("{head}{MARK}{tail}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_ends_of_a_text_are_kept(text in ".{0,200}", max in 5_usize..100) {
            let clipped = clip_middle(&text, max);
            prop_assert!(clipped.len() <= max.max(text.len().min(max)));
            match clipped.split_once(" … ") {
                Some((head, tail)) if clipped != text => {
                    prop_assert!(text.starts_with(head) && text.ends_with(tail));
                }
                _ => prop_assert_eq!(clipped, text),
            }
        }
    }
}
