//! Sees to it that the output of an attempt's steps gets into the journal: every line once, in order, and a gap where a
//! line is known to be missing or may be.
//!
//! An attempt that reaches Kiln pushes its log by itself; then the pump only waits for the seal and writes the steps'
//! ends. Where nothing is pushed, or what pushed died, it reads the log as far as the runner has it. Both may write at
//! the same time: each goes by the numbers of the lines. As long as a push may still come, no gap is written where the
//! runner's log lacks lines, because the push will have them.

mod carry;
mod read;

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Context, metrics::GapLabels};
use crate::{
    domain::{
        clock::Clock as _,
        event::{Event, Gap, Step, StepName, StepPhase},
    },
    journal::{
        AppendError, lines,
        log::{Change, LogWriter},
    },
    runner::{LogEnd, Observation, Runner, Shipping, StepEnd},
    store::{
        Lease,
        journal::{Sealed, StepCursor},
    },
};

/// The log of one attempt on its way into the journal.
pub(super) struct LogPump<'a, R> {
    pub(super) context: &'a Context<R>,
    pub(super) lease: Lease,
    pub(super) log: LogWriter,
    pub(super) observed: watch::Receiver<Observation>,
    /// Cancelled when there is no more time to wait for the rest of the log.
    pub(super) hurry: CancellationToken,
}

/// How a step's log got into the journal.
#[derive(Debug, PartialEq, Eq)]
enum Carried {
    /// It was pushed, to its end.
    Sealed(Sealed),
    /// It was read.
    Read(LogEnd),
}

/// What is to be known of an attempt's log once it is in the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LogOutcome {
    /// Why nobody knows how the last step's log ends, if that is so.
    pub(super) lost: Option<String>,
}

impl<R: Runner> LogPump<'_, R> {
    /// Runs until every step of the attempt has ended, one way or the other, and is in the journal.
    pub(super) async fn run(mut self) -> Result<LogOutcome, AppendError> {
        let mut outcome = LogOutcome::default();
        for step in StepName::ALL {
            if self.log.cursor().step(step).ended {
                continue;
            }
            let Some(began) = self.wait_for_begin(step).await else {
                break;
            };
            let attempt = self.lease.attempt.number;
            let via = (self.shipping() == Shipping::Absent).then_some(R::LOG_VIA);
            let fresh = StepCursor {
                via,
                ..StepCursor::default()
            };
            self.log
                .update(|standing| {
                    let began = began.filter(|_| !standing.cursor.0.contains_key(&step))?;
                    Some(Change {
                        cursor: standing.cursor.with(step, fresh),
                        events: vec![Event::Step(Step::whole(step, attempt, StepPhase::Started, began))],
                        text: 0,
                    })
                })
                .await?;
            let carried = self.carry(step).await?;
            outcome.lost = self.close(step, carried).await?;
        }
        Ok(outcome)
    }

    /// Waits until the step runs and says since when; `None` when the attempt is over without it. A step of which
    /// something was pushed has begun, even if its attempt was gone before that was seen.
    async fn wait_for_begin(&mut self, step: StepName) -> Option<Option<DateTime<Utc>>> {
        let hurry = self.hurry.clone();
        let begin_of = |observation: &Observation| {
            let seen = observation.steps().iter().find(|seen| seen.step == step);
            seen.map(|seen| seen.started_at)
        };
        let wait = self
            .observed
            .wait_for(|observation| is_over(observation) || begin_of(observation).is_some());
        let began = match hurry.run_until_cancelled(wait).await {
            Some(Ok(observation)) => begin_of(&observation),
            _ => None,
        };
        if began.is_some() {
            return Some(began);
        }
        // What can't be asked is asked by whoever takes the build over.
        let _ = self.log.refresh().await;
        let pushed = self.log.cursor().0.get(&step).is_some_and(|cursor| !cursor.ended);
        pushed.then_some(None)
    }

    fn count_gap(&self, place: &'static str) {
        self.context.metrics.log_gaps.get_or_create(&GapLabels { place }).inc();
    }

    /// Writes what is missing, if anything, and the step's end. Returns why nobody knows how the log ends, if so.
    async fn close(&mut self, step: StepName, carried: Carried) -> Result<Option<String>, AppendError> {
        let end = self.wait_for_end(step).await;
        let now = self.context.clock.now();
        let phase = if end.as_ref().is_some_and(|end| end.succeeded) {
            StepPhase::Succeeded
        } else {
            StepPhase::Failed
        };
        let at = end.as_ref().map_or(now, |end| end.at);
        let attempt = self.lease.attempt.number;
        let (mut short, mut lost) = (Vec::new(), false);
        self.log
            .update(|standing| {
                let mut cursor = standing.cursor.step(step);
                if cursor.ended {
                    return None;
                }
                // The seal may have come while this was read, or since.
                let sealed = cursor.sealed.map(Carried::Sealed);
                let carried = sealed.as_ref().unwrap_or(&carried);
                short = missing(&cursor, end.as_ref(), carried);
                lost = matches!(carried, Carried::Read(LogEnd::Lost(_)));
                let mut events = Vec::new();
                for gap in &short {
                    cursor.line += gap.lines.unwrap_or(0);
                    events.push(Event::Gap(Gap {
                        step,
                        lines: gap.lines,
                        reason: gap.reason.clone(),
                        at: now,
                    }));
                }
                events.extend(lines::not_kept(step, &cursor, now));
                events.push(Event::Step(Step::whole(step, attempt, phase, at)));
                cursor.ended = true;
                Some(Change {
                    cursor: standing.cursor.with(step, cursor),
                    events,
                    text: 0,
                })
            })
            .await?;
        for _ in &short {
            self.count_gap("end");
        }
        Ok(short.into_iter().next().filter(|_| lost).map(|short| short.reason))
    }

    /// Waits until the step's end was observed; `None` when the attempt was lost without it.
    async fn wait_for_end(&mut self, step: StepName) -> Option<StepEnd> {
        let wait = self
            .observed
            .wait_for(|observation| is_over(observation) || end_of(observation, step).is_some());
        let observation = self.hurry.run_until_cancelled(wait).await?.ok()?;
        end_of(&observation, step).cloned()
    }
}

const fn is_over(observation: &Observation) -> bool {
    matches!(observation, Observation::Finished { .. } | Observation::Gone { .. })
}

fn end_of(observation: &Observation, step: StepName) -> Option<&StepEnd> {
    let seen = observation.steps().iter().find(|seen| seen.step == step);
    seen.and_then(|seen| seen.end.as_ref())
}

/// What a step's log lacks at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    /// How many lines; `None` where nobody knows, not even whether it is any.
    lines: Option<u64>,
    reason: String,
}

/// Compares what arrived with what the step's agent says it printed.
fn missing(held: &StepCursor, end: Option<&StepEnd>, carried: &Carried) -> Vec<Missing> {
    const UNTOLD: &str = "the step was killed before it could say how much it had printed";
    let reported = end.and_then(|end| end.report.as_ref()).map(|report| report.lines);
    let all = reported.or_else(|| match carried {
        // The agent's last word, even if its report was lost with the pod.
        Carried::Sealed(sealed) if sealed.complete => Some(sealed.lines),
        // The same, of what was never handed over.
        _ => held.printed.filter(|printed| printed.all).map(|printed| printed.lines),
    });
    let gap = |lines, reason: &str| Missing {
        lines,
        reason: reason.to_owned(),
    };
    let reason = match carried {
        Carried::Read(LogEnd::Lost(reason)) => reason.as_str(),
        Carried::Sealed(_) => "the step was killed before it had handed over the end of its log",
        Carried::Read(LogEnd::Complete) => "the cluster no longer had the end of the log",
    };
    let known = all.or_else(|| held.printed.map(|printed| printed.lines));
    let counted = known
        .and_then(|known| known.checked_sub(held.line))
        .filter(|&lines| lines > 0);
    let counted = counted.map(|lines| gap(Some(lines), reason));
    let untold = all.is_none().then(|| match carried {
        Carried::Read(LogEnd::Lost(reason)) if counted.is_none() => gap(None, reason),
        _ => gap(None, UNTOLD),
    });
    counted.into_iter().chain(untold).collect()
}

#[cfg(test)]
mod tests {
    use kiln_agent::wire::{
        push::Printed,
        report::{Exit, Report},
    };

    use super::*;

    fn end(lines: Option<u64>) -> StepEnd {
        StepEnd {
            succeeded: true,
            at: DateTime::UNIX_EPOCH,
            report: lines.map(|lines| Report {
                exit: Exit::Code(0),
                lines,
                bytes: 0,
                commit: None,
                digest: None,
                problem: None,
                failed: None,
                tail: String::new(),
            }),
        }
    }

    fn sealed(lines: u64, complete: bool) -> Carried {
        Carried::Sealed(Sealed {
            lines,
            complete,
            agrees: true,
        })
    }

    fn held(line: u64, printed: Option<(u64, bool)>) -> StepCursor {
        StepCursor {
            line,
            ..StepCursor::default()
        }
        .and_printed(printed.map(|(lines, all)| Printed { lines, all }))
    }

    #[test]
    fn what_is_missing_is_counted_where_it_can_be() {
        let lost = || Carried::Read(LogEnd::Lost("the pod is gone".to_owned()));
        let lines = |held: StepCursor, end: Option<&StepEnd>, carried: &Carried| {
            let gaps = missing(&held, end, carried);
            gaps.into_iter().map(|gap| gap.lines).collect::<Vec<_>>()
        };
        let complete = Carried::Read(LogEnd::Complete);
        let five = held(5, None);
        assert_eq!(lines(five, Some(&end(Some(5))), &lost()), []);
        assert_eq!(lines(five, Some(&end(Some(9))), &complete), [Some(4)]);
        assert_eq!(lines(five, Some(&end(None)), &complete), [None]);
        assert_eq!(lines(five, None, &lost()), [None]);
        // A seal is the agent's own word, unless it was killed.
        assert_eq!(lines(five, None, &sealed(5, true)), []);
        assert_eq!(lines(five, Some(&end(None)), &sealed(5, true)), []);
        assert_eq!(lines(five, Some(&end(None)), &sealed(5, false)), [None]);
        assert_eq!(lines(five, Some(&end(Some(5))), &sealed(5, false)), []);
        assert_eq!(lines(five, Some(&end(Some(7))), &sealed(5, false)), [Some(2)]);
        // What was announced is known to be missing; only the agent's last word says that it is all.
        assert_eq!(lines(held(5, Some((9, false))), None, &lost()), [Some(4), None]);
        assert_eq!(lines(held(5, Some((5, false))), None, &lost()), [None]);
        assert_eq!(lines(held(5, Some((9, true))), None, &lost()), [Some(4)]);
        assert_eq!(lines(held(5, Some((5, true))), None, &lost()), []);
        assert_eq!(
            lines(held(5, Some((9, false))), Some(&end(Some(12))), &complete),
            [Some(7)]
        );
    }
}
