//! Entries in the forms in which they are sent, made once for all who read them.

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use super::tail::Item;
use crate::{
    domain::event::{Change, Event},
    store::journal::Page,
};

/// What an entry costs in memory beside its text, held and encoded.
const ENTRY_COST: usize = 256;

/// Consecutive entries of one journal; at least one.
pub struct Frames {
    entries: Page,
    /// Made when somebody wants it first.
    encoded: OnceLock<Encoded>,
}

/// Server-sent events, one behind the other.
struct Encoded {
    bytes: Bytes,
    marks: Vec<Mark>,
}

/// Where an entry's event lies.
#[derive(Clone, Copy)]
struct Mark {
    start: usize,
    /// Where its JSON goes on behind the sequence number.
    content: usize,
    end: usize,
}

impl Frames {
    /// `None` of no entries.
    pub(super) fn new(entries: Page) -> Option<Self> {
        let encoded = OnceLock::new();
        (!entries.is_empty()).then_some(Self { entries, encoded })
    }

    fn encoded(&self) -> &Encoded {
        self.encoded.get_or_init(|| {
            let mut bytes = Vec::new();
            let mut mark = |(seq, event): &(i64, Event)| {
                let start = bytes.len();
                bytes
                    .extend_from_slice(format!("id: {seq}\nevent: {}\ndata: {{\"seq\":{seq}", event.kind()).as_bytes());
                let content = bytes.len();
                fields(&mut bytes, event);
                bytes.extend_from_slice(b"\n\n");
                let end = bytes.len();
                Mark { start, content, end }
            };
            let marks = self.entries.iter().map(&mut mark).collect();
            Encoded {
                bytes: bytes.into(),
                marks,
            }
        })
    }
}

impl Item for Frames {
    fn last(&self) -> i64 {
        self.entries.last().map_or(0, |(seq, _)| *seq)
    }

    fn cost(&self) -> usize {
        self.entries
            .iter()
            .map(|(_, event)| ENTRY_COST + 2 * length(event))
            .sum()
    }
}

/// The fields of an entry as the rest of a JSON object that has begun. No kind of entry is without fields.
fn fields(out: &mut Vec<u8>, event: &Event) {
    let brace = out.len();
    let _ = match event {
        // Strings, numbers and dates always serialise, and a Vec takes every write.
        Event::Status(content) => serde_json::to_writer(&mut *out, content),
        Event::Step(content) => serde_json::to_writer(&mut *out, content),
        Event::Log(content) => serde_json::to_writer(&mut *out, content),
        Event::Gap(content) => serde_json::to_writer(&mut *out, content),
        Event::End(content) => serde_json::to_writer(&mut *out, content),
    };
    if let Some(brace) = out.get_mut(brace) {
        *brace = b',';
    }
}

fn length(event: &Event) -> usize {
    match event {
        Event::Log(log) => log.text.len(),
        Event::Gap(gap) => gap.reason.len(),
        Event::Step(step) => step.name.as_ref().map_or(0, String::len) + step.error.as_ref().map_or(0, String::len),
        Event::Status(_) | Event::End(_) => 0,
    }
}

/// The entries that a reader gets at once: frames, from some entry on. As a slice it is the entries with their numbers.
#[derive(Clone)]
pub struct Slice {
    frames: Arc<Frames>,
    from: usize,
}

impl Slice {
    /// What of the frames comes after `after`.
    pub(super) fn after(frames: Arc<Frames>, after: i64) -> Self {
        let from = frames.entries.partition_point(|(seq, _)| *seq <= after);
        Self { frames, from }
    }

    /// The entries that `wanted` says as server-sent events. Shared with other readers where it is all of them.
    pub fn server_sent(&self, wanted: impl Fn(&Event) -> bool) -> Bytes {
        let encoded = self.frames.encoded();
        let marks = &encoded.marks[self.from..];
        if self.iter().all(|(_, event)| wanted(event)) {
            return encoded
                .bytes
                .slice(marks.first().map_or(encoded.bytes.len(), |mark| mark.start)..);
        }
        let mut out = Vec::new();
        for ((_, event), mark) in self.iter().zip(marks) {
            if wanted(event) {
                out.extend_from_slice(&encoded.bytes[mark.start..mark.end]);
            }
        }
        out.into()
    }

    /// The entries that `wanted` says as JSON objects that name their kind, one a line.
    pub fn json_lines(&self, out: &mut Vec<u8>, wanted: impl Fn(&Event) -> bool) {
        let encoded = self.frames.encoded();
        for ((seq, event), mark) in self.iter().zip(&encoded.marks[self.from..]) {
            if wanted(event) {
                out.extend_from_slice(format!("{{\"seq\":{seq},\"event\":\"{}\"", event.kind()).as_bytes());
                // One of the two newlines that end an event ends the line.
                out.extend_from_slice(&encoded.bytes[mark.content..mark.end - 1]);
            }
        }
    }
}

impl Deref for Slice {
    type Target = [(i64, Event)];

    fn deref(&self) -> &Self::Target {
        &self.frames.entries[self.from..]
    }
}

/// A change of one of many builds, as a server-sent event.
pub(super) fn change(out: &mut Vec<u8>, change: &Change) {
    out.extend_from_slice(format!("id: {}\nevent: status\ndata: ", change.seq).as_bytes());
    // Strings, numbers and dates always serialise, and a Vec takes every write.
    let _ = serde_json::to_writer(&mut *out, change);
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{
        event::{End, Gap, Log, LogStream, Status, StepName},
        state::StateName,
    };

    fn log(step: StepName, text: &str) -> Event {
        Event::Log(Log {
            step,
            stream: LogStream::Stdout,
            at: DateTime::UNIX_EPOCH,
            text: text.to_owned(),
            partial: false,
            replaced: 0,
        })
    }

    fn slice(events: Vec<Event>) -> Slice {
        let frames = Frames::new((7..).zip(events).collect()).expect("entries");
        Slice::after(Arc::new(frames), 0)
    }

    fn text(bytes: impl AsRef<[u8]>) -> String {
        String::from_utf8(bytes.as_ref().to_vec()).expect("UTF-8")
    }

    fn json_lines(slice: &Slice) -> String {
        let mut out = Vec::new();
        slice.json_lines(&mut out, |_| true);
        text(out)
    }

    #[test]
    fn an_event_is_three_lines_whatever_the_text_holds() {
        let slice = slice(vec![log(StepName::Build, "50%\r100%\n\u{2028}\u{0}data: x\n\n")]);
        let text = text(slice.server_sent(|_| true));
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
        let end = End {
            state: StateName::Succeeded,
            digest: None,
            failure: None,
        };
        assert_eq!(
            json_lines(&slice(vec![Event::End(end)])),
            "{\"seq\":7,\"event\":\"end\",\"state\":\"succeeded\",\"digest\":null,\"failure\":null}\n"
        );
    }

    fn event() -> impl Strategy<Value = Event> {
        let step = prop_oneof![Just(StepName::Source), Just(StepName::Build)];
        prop_oneof![
            (step.clone(), ".{0,40}").prop_map(|(step, text)| log(step, &text)),
            (step, proptest::option::of(0..9_u64), ".{0,20}").prop_map(|(step, lines, reason)| Event::Gap(Gap {
                step,
                lines,
                reason,
                at: DateTime::UNIX_EPOCH,
            })),
            Just(Event::Status(Status {
                state: StateName::Running,
                at: DateTime::UNIX_EPOCH,
                attempt: Some(1),
                failure: None,
                superseded_by: None,
            })),
        ]
    }

    proptest! {
        /// Both forms say of every entry what the entry says, whatever is left out and wherever a reader begins.
        #[test]
        fn both_forms_hold_what_is_wanted(events in proptest::collection::vec(event(), 1..12), after in 0_i64..20, every in any::<bool>()) {
            let frames = Arc::new(Frames::new((7..).zip(events).collect()).expect("entries"));
            let slice = Slice::after(frames, after);
            let wanted = |event: &Event| every || matches!(event, Event::Log(log) if log.step == StepName::Build);
            let expected: Vec<Value> = slice
                .iter()
                .filter(|(seq, event)| *seq > after && wanted(event))
                .map(|(seq, event)| {
                    // Externally tagged: one key, which is the kind.
                    let tagged = serde_json::to_value(event).expect("serialises");
                    let mut object = tagged[event.kind()].as_object().expect("an object").clone();
                    object.insert("seq".to_owned(), json!(seq));
                    object.insert("event".to_owned(), json!(event.kind()));
                    Value::Object(object)
                })
                .collect();
            let mut lines = Vec::new();
            slice.json_lines(&mut lines, wanted);
            let lines: Vec<Value> = text(lines).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            prop_assert_eq!(&lines, &expected);
            let sent = text(slice.server_sent(wanted));
            let sent: Vec<Value> = sent
                .split_terminator("\n\n")
                .map(|block| {
                    let [id, kind, data] = block.split('\n').collect::<Vec<_>>()[..] else { panic!("{block:?}") };
                    let mut object: Value = serde_json::from_str(&data["data: ".len()..]).expect("JSON");
                    object["event"] = json!(kind["event: ".len()..]);
                    assert_eq!(id, format!("id: {}", object["seq"]));
                    object
                })
                .collect();
            prop_assert_eq!(sent, expected);
        }
    }
}
