//! How far the log of an attempt is in the journal: what makes an append that is repeated harmless, and what two
//! writers of one log notice each other by.

use std::collections::BTreeMap;

use kiln_agent::wire::push::Printed;
use serde::{Deserialize, Serialize};

use crate::domain::{
    build::{AttemptLog, LogVia},
    event::StepName,
};

/// How far an attempt's steps are in the journal. Stored with every append, which names the cursor that it found: of
/// two that found the same one takes effect, and the other begins again from what it finds then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogCursor(pub BTreeMap<StepName, StepCursor>);

impl LogCursor {
    /// How far a step is; at its beginning when nothing is known of it.
    pub fn step(&self, step: StepName) -> StepCursor {
        self.0.get(&step).copied().unwrap_or_default()
    }

    /// The cursor with one step moved.
    #[must_use]
    pub fn with(&self, step: StepName, cursor: StepCursor) -> Self {
        let mut moved = self.clone();
        moved.0.insert(step, cursor);
        moved
    }

    /// Whether anything of the attempt has been pushed, and nothing had to be read instead since.
    pub fn is_pushed(&self) -> bool {
        self.last_via() == Some(LogVia::Push)
    }

    /// Whether what was last heard of had to be read.
    pub fn was_read(&self) -> bool {
        self.last_via().is_some_and(|via| via != LogVia::Push)
    }

    /// What carries the log: of the last step that anything is known of.
    fn last_via(&self) -> Option<LogVia> {
        self.0.values().rev().find_map(|step| step.via)
    }

    /// What callers are shown; `None` before anything has arrived.
    pub fn shown(&self) -> Option<AttemptLog> {
        // A step that had to be read stays visible when later ones were pushed.
        let read = self
            .0
            .values()
            .find_map(|step| step.via.filter(|via| *via != LogVia::Push));
        Some(AttemptLog {
            via: read.or(self.last_via())?,
            sealed: self
                .0
                .values()
                .all(|step| step.sealed.is_some_and(|sealed| sealed.complete && sealed.agrees)),
        })
    }
}

/// How far one step is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCursor {
    /// Number of the last line in the journal, or known to be missing.
    pub line: u64,
    /// When that line was printed, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Whether the step's end is in the journal; nothing of it follows.
    pub ended: bool,
    // What follows is left out where it says nothing, so that cursors of attempts that an older Kiln began compare equal.
    /// Bytes of the step's spool that are held: pushes go on from there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes: u64,
    /// CRC-32 (IEEE) of those bytes.
    #[serde(default, skip_serializing_if = "no_bytes")]
    pub crc32: u32,
    /// How much its agent has printed, where that is more than what is held, or certain to be all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub printed: Option<Printed>,
    /// What brought the last of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<LogVia>,
    /// What the step's agent said at its end, once all of it had arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
    /// Lines that were not kept since a limit of the build or its project was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
}

impl StepCursor {
    /// The cursor with what is known of how much was printed.
    #[must_use]
    pub fn and_printed(mut self, printed: Option<Printed>) -> Self {
        let known = match (self.printed, printed) {
            (Some(known), Some(news)) => Some(known.and(news)),
            (known, news) => known.or(news),
        };
        self.printed = known.filter(|known| known.all || known.lines > self.line);
        self
    }
}

/// The end of a step's spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Number of the last line.
    pub lines: u64,
    /// Whether the agent that wrote the lines says so itself; otherwise it was killed, and may have had more in hand.
    pub complete: bool,
    /// Whether size and checksum are those of what arrived.
    pub agrees: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn no_bytes(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_of_older_attempts_stay_what_they_are() {
        let stored = serde_json::json!({"source": {"line": 4, "at_ms": 5, "ended": true}});
        let cursor: LogCursor = serde_json::from_value(stored.clone()).expect("reads");
        assert_eq!(serde_json::to_value(&cursor).expect("writes"), stored);
        assert_eq!(cursor.shown(), None);
    }

    #[test]
    fn a_step_that_had_to_be_read_is_shown() {
        let step = |via| StepCursor {
            via: Some(via),
            sealed: Some(Sealed {
                lines: 1,
                complete: true,
                agrees: true,
            }),
            ..StepCursor::default()
        };
        let pushed = LogCursor::default().with(StepName::Source, step(LogVia::Push));
        let shown = |via, sealed| Some(AttemptLog { via, sealed });
        assert_eq!(pushed.shown(), shown(LogVia::Push, true));
        let mixed = pushed.with(StepName::Build, step(LogVia::Kubernetes));
        assert!(!mixed.is_pushed());
        assert_eq!(mixed.shown(), shown(LogVia::Kubernetes, true));
        let begun = pushed.with(StepName::Build, StepCursor::default());
        assert!(begun.is_pushed());
        assert_eq!(begun.shown(), shown(LogVia::Push, false));
    }
}
