//! Journal entries in the forms in which they are sent.

use std::fmt::Write as _;

use serde::Serialize;

use crate::domain::event::{Change, Event, Gap};

/// An entry's content behind its number.
#[derive(Serialize)]
struct Numbered<'a, T> {
    seq: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'static str>,
    #[serde(flatten)]
    content: &'a T,
}

fn json(out: &mut Vec<u8>, seq: i64, kind: Option<&'static str>, event: &Event) {
    fn write<T: Serialize>(out: &mut Vec<u8>, seq: i64, event: Option<&'static str>, content: &T) {
        // Strings, numbers and dates always serialise, and a Vec takes every write.
        let _ = serde_json::to_writer(out, &Numbered { seq, event, content });
    }
    match event {
        Event::Status(content) => write(out, seq, kind, content),
        Event::Step(content) => write(out, seq, kind, content),
        Event::Log(content) => write(out, seq, kind, content),
        Event::Gap(content) => write(out, seq, kind, content),
        Event::End(content) => write(out, seq, kind, content),
    }
}

/// A server-sent event. JSON has no line breaks of its own, so the data is always one line.
pub(super) fn server_sent(out: &mut Vec<u8>, seq: i64, event: &Event) {
    let kind = event.kind();
    out.extend_from_slice(format!("id: {seq}\nevent: {kind}\ndata: ").as_bytes());
    json(out, seq, None, event);
    out.extend_from_slice(b"\n\n");
}

/// A server-sent event about one of many builds.
pub(super) fn change(out: &mut Vec<u8>, change: &Change) {
    out.extend_from_slice(format!("id: {}\nevent: status\ndata: ", change.seq).as_bytes());
    // Strings, numbers and dates always serialise, and a Vec takes every write.
    let _ = serde_json::to_writer(&mut *out, change);
    out.extend_from_slice(b"\n\n");
}

/// A line of JSON that names its kind.
pub(super) fn json_line(out: &mut Vec<u8>, seq: i64, event: &Event) {
    json(out, seq, Some(event.kind()), event);
    out.push(b'\n');
}

/// Writes the output as it was printed. A gap is a line of its own.
#[derive(Debug, Default)]
pub(super) struct Text {
    within_line: bool,
}

impl Text {
    pub(super) fn write(&mut self, out: &mut Vec<u8>, event: &Event) {
        match event {
            Event::Log(log) => {
                out.extend_from_slice(log.text.as_bytes());
                self.within_line = !log.text.ends_with('\n');
            }
            Event::Gap(gap) => {
                if self.within_line {
                    out.push(b'\n');
                }
                out.extend_from_slice(notice(gap).as_bytes());
                self.within_line = false;
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
    use serde_json::Value;

    use super::*;
    use crate::domain::{
        event::{End, Log, LogStream, StepName},
        state::StateName,
    };

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
    fn an_event_is_three_lines_whatever_the_text_holds() {
        let mut out = Vec::new();
        server_sent(&mut out, 7, &log("50%\r100%\n\u{2028}\u{0}data: x\n\n"));
        let text = String::from_utf8(out).expect("UTF-8");
        let lines: Vec<_> = text.split(['\n', '\r']).collect();
        assert_eq!(
            (lines[0], lines[1], &lines[3..]),
            ("id: 7", "event: log", &["", ""][..])
        );
        let data: Value = serde_json::from_str(lines[2].strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(data["text"], "50%\r100%\n\u{2028}\u{0}data: x\n\n");
        assert!(lines[2].starts_with(r#"data: {"seq":7,"step":"build","stream":"stdout","at":"#));
    }

    #[test]
    fn a_json_line_names_its_kind() {
        let mut out = Vec::new();
        let end = End {
            state: StateName::Succeeded,
            digest: None,
            failure: None,
        };
        json_line(&mut out, 9, &Event::End(end));
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "{\"seq\":9,\"event\":\"end\",\"state\":\"succeeded\",\"digest\":null,\"failure\":null}\n"
        );
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
