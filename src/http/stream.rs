//! Answers that are read from a build's journal while they are sent.

pub(super) mod document;
mod encode;
pub(super) mod ranged;
pub(super) mod sse;

use crate::domain::event::{Event, StepName};

/// Which entries go into an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of them.
    Everything,
    /// What steps printed, or one of them, and what is missing of it; and the end.
    Output(Option<StepName>),
}

impl Selection {
    fn holds(self, event: &Event) -> bool {
        let wanted = |of: StepName| match self {
            Self::Everything | Self::Output(None) => true,
            Self::Output(Some(step)) => step == of,
        };
        match event {
            Event::Status(_) => self == Self::Everything,
            Event::Step(step) => self == Self::Everything && wanted(step.step),
            Event::Log(log) => wanted(log.step),
            Event::Gap(gap) => wanted(gap.step),
            Event::End(_) => true,
        }
    }
}
