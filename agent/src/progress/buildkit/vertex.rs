//! What is known of one vertex, or of several that show as one.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use super::message::{self, Time};
use crate::capture::lines::Lines;

/// Where a vertex stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// It has not begun.
    #[default]
    Waiting,
    /// It runs.
    Running,
    /// It has ended, unless it begins again at once.
    Ending(Instant),
    /// It has ended, and that was said.
    Ended,
}

/// A vertex.
#[derive(Debug, Default)]
pub(super) struct Vertex {
    /// 0 until it shows.
    pub(super) number: u32,
    pub(super) name: String,
    pub(super) state: State,
    pub(super) cached: bool,
    pub(super) error: String,
    /// Its standard output and standard error.
    pub(super) outputs: [Output; 2],
    /// For each thing within it: when a line was last written, and whether that was the last one.
    pub(super) statuses: HashMap<String, (Time, bool)>,
    /// When it ran, by the moment and the member of the group: until when, if that is known.
    runs: BTreeMap<(Time, String), Option<Time>>,
}

impl Vertex {
    /// Takes news. Says whether it begins, for the first time or after its end was said.
    pub(super) fn take(&mut self, news: message::Vertex) -> bool {
        let weak = news.group.as_ref().is_some_and(|group| group.weak);
        match news.group {
            Some(group) if !group.name.is_empty() => self.name = group.name,
            _ => self.name = news.name,
        }
        let failed = !news.error.is_empty();
        if weak && !failed {
            return false;
        }
        // What fails without having begun takes no time.
        let started = news
            .started
            .or(if failed { news.completed.or(Some(Time(0))) } else { None });
        let Some(started) = started else {
            return false;
        };
        let run = self.runs.entry((started, news.digest));
        let new = matches!(run, std::collections::btree_map::Entry::Vacant(_));
        let until = run.or_default();
        let completed = news.completed.or(failed.then_some(started));
        let ended_now = until.is_none() && completed.is_some();
        if completed.is_some() {
            *until = completed;
        }
        self.cached = news.cached;
        if failed && (new || ended_now || self.error.is_empty() && self.state != State::Ended) {
            self.error = news.error;
        }
        match self.state {
            State::Waiting => true,
            State::Ended => new,
            State::Ending(_) => {
                if new {
                    self.state = State::Running;
                }
                false
            }
            State::Running => false,
        }
    }

    /// Whether any part of it runs.
    pub(super) fn is_running(&self) -> bool {
        self.runs.values().any(Option::is_none)
    }

    /// How long it has run, in microseconds; members of a group that ran at the same time count once.
    pub(super) fn micros(&self) -> u64 {
        let (mut sum, mut reached) = (0, i64::MIN);
        for (&(Time(from), _), until) in &self.runs {
            let until = until.map_or(from, |Time(until)| until);
            let from = from.max(reached);
            if until > from {
                sum += until.abs_diff(from);
                reached = until;
            }
        }
        sum
    }

    /// Microseconds from its last beginning until `at`.
    pub(super) fn since(&self, Time(at): Time) -> u64 {
        let begun = self.runs.keys().map(|(Time(from), _)| *from).rfind(|from| *from <= at);
        begun.map_or(0, |from| at.abs_diff(from))
    }
}

/// The output of a vertex on one stream, line by line with a prefix.
#[derive(Debug, Default)]
pub(super) struct Output {
    lines: Lines,
    within: bool,
}

impl Output {
    /// Takes bytes; lines that begin in them get this prefix.
    pub(super) fn push(&mut self, prefix: &str, bytes: &[u8], mut emit: impl FnMut(&[u8], bool)) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if !self.within {
                self.lines.push(prefix.as_bytes(), &mut emit);
            }
            self.lines.push(piece, &mut emit);
            self.within = !piece.ends_with(b"\n");
        }
    }

    /// Whether it is in the middle of a line.
    pub(super) const fn is_within(&self) -> bool {
        self.within
    }

    /// Ends a line that has no end.
    pub(super) fn finish(&mut self, emit: impl FnMut(&[u8], bool)) {
        self.within = false;
        self.lines.finish(emit);
    }
}
