//! Journal entries in the forms in which they are sent.

use std::fmt::Write as _;

use crate::domain::event::{Event, Gap, LogStream, StepName};

/// Writes the output as it was printed. A gap is a line of its own, and so is what another stream printed between the
/// pieces of a long line.
#[derive(Debug, Default)]
pub(super) struct Text {
    /// Whose line is unfinished.
    within_line: Option<(StepName, LogStream)>,
}

impl Text {
    pub(super) fn write(&mut self, out: &mut Vec<u8>, event: &Event) {
        match event {
            Event::Log(log) => {
                let source = (log.step, log.stream);
                if self.within_line.is_some_and(|unfinished| unfinished != source) {
                    out.push(b'\n');
                }
                out.extend_from_slice(log.text.as_bytes());
                self.within_line = (!log.text.ends_with('\n')).then_some(source);
            }
            Event::Gap(gap) => {
                if self.within_line.take().is_some() {
                    out.push(b'\n');
                }
                out.extend_from_slice(notice(gap).as_bytes());
            }
            Event::Status(_) | Event::Step(_) | Event::End(_) => {}
        }
    }
}

fn notice(gap: &Gap) -> String {
    let mut text = String::from("[kiln: ");
    // Writing to a String can't fail.
    let _ = match gap.lines {
        Some(1) => write!(text, "1 line is missing"),
        Some(lines) => write!(text, "{lines} lines are missing"),
        None => write!(text, "output is missing"),
    };
    let _ = writeln!(text, " here: {}]", gap.reason.replace(['\n', '\r'], " "));
    text
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::domain::event::Log;

    fn log(text: &str) -> Event {
        Event::Log(Log {
            step: StepName::Build,
            stream: LogStream::Stdout,
            at: DateTime::UNIX_EPOCH,
            text: text.to_owned(),
            partial: false,
            replaced: 0,
        })
    }

    fn gap(lines: Option<u64>) -> Event {
        Event::Gap(Gap {
            step: StepName::Build,
            lines,
            reason: "the node\nwent away".to_owned(),
            at: DateTime::UNIX_EPOCH,
        })
    }

    #[test]
    fn streams_do_not_share_a_line() {
        let other = |text: &str| {
            let Event::Log(entry) = log(text) else {
                unreachable!("a log entry")
            };
            Event::Log(Log {
                stream: LogStream::Stderr,
                ..entry
            })
        };
        let mut out = Vec::new();
        let mut text = Text::default();
        for event in [log("wi"), log("de "), other("said\n"), log("rest\n"), other("more\n")] {
            text.write(&mut out, &event);
        }
        assert_eq!(String::from_utf8(out).expect("UTF-8"), "wide \nsaid\nrest\nmore\n");
    }

    #[test]
    fn a_gap_is_a_line_of_its_own() {
        let mut out = Vec::new();
        let mut text = Text::default();
        for event in [log("a\n"), gap(Some(12)), log("b"), gap(None), gap(Some(1)), log("c\n")] {
            text.write(&mut out, &event);
        }
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "a\n[kiln: 12 lines are missing here: the node went away]\nb\n\
             [kiln: output is missing here: the node went away]\n\
             [kiln: 1 line is missing here: the node went away]\nc\n"
        );
    }
}
