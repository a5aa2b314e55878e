//! Reading a payload by JSON pointers, without trusting that anything in it is what it should be.

use serde_json::Value;
use url::form_urlencoded;

use super::{Incoming, Malformed};
use crate::domain::spec::CommitId;

/// Longest text that is taken over, in bytes; longer ones are cut.
const MAX_TEXT: usize = 16 * 1024;
/// Most changed files that are taken over; beyond that they count as not known.
const MAX_FILES: usize = 5000;

/// The JSON document of a delivery.
pub(super) struct Payload(Value);

impl Payload {
    /// Reads a body: JSON, or a form with JSON in its field `payload`.
    pub(super) fn of(incoming: &Incoming<'_>) -> Result<Self, Malformed> {
        let form = incoming.header("content-type").unwrap_or_default();
        let parsed = if form
            .to_ascii_lowercase()
            .starts_with("application/x-www-form-urlencoded")
        {
            let field = form_urlencoded::parse(incoming.body).find(|(name, _)| name == "payload");
            let (_, text) = field.ok_or_else(|| Malformed("the form has no field `payload`".to_owned()))?;
            serde_json::from_str(&text)
        } else {
            serde_json::from_slice(incoming.body)
        };
        match parsed {
            Ok(Value::Object(fields)) => Ok(Self(Value::Object(fields))),
            Ok(_) => Err(Malformed("the payload is no JSON object".to_owned())),
            Err(error) => Err(Malformed(format!("the payload isn't JSON: {error}"))),
        }
    }

    /// The whole document.
    pub(super) fn into_value(self) -> Value {
        self.0
    }

    /// A part of a payload.
    pub(super) fn part(value: &Value) -> Self {
        Self(value.clone())
    }

    /// An object inside it that has to be there.
    pub(super) fn object(&self, pointer: &str) -> Result<Self, Malformed> {
        match self.0.pointer(pointer) {
            Some(value @ Value::Object(_)) => Ok(Self(value.clone())),
            _ => Err(missing(pointer)),
        }
    }

    /// A text that isn't empty.
    pub(super) fn text(&self, pointer: &str) -> Option<String> {
        let text = self.0.pointer(pointer)?.as_str()?;
        (!text.is_empty()).then(|| clean(text))
    }

    /// A text that has to be there.
    pub(super) fn required(&self, pointer: &str) -> Result<String, Malformed> {
        self.text(pointer).ok_or_else(|| missing(pointer))
    }

    /// A number that isn't negative.
    pub(super) fn number(&self, pointer: &str) -> Option<u64> {
        self.0.pointer(pointer)?.as_u64()
    }

    /// A number that has to be there.
    pub(super) fn required_number(&self, pointer: &str) -> Result<u64, Malformed> {
        self.number(pointer).ok_or_else(|| missing(pointer))
    }

    /// Whether something is there and true.
    pub(super) fn is(&self, pointer: &str) -> bool {
        self.0.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Whether something is there and not null.
    pub(super) fn has(&self, pointer: &str) -> bool {
        self.0.pointer(pointer).is_some_and(|value| !value.is_null())
    }

    /// The elements of a list; none when it isn't there.
    pub(super) fn list(&self, pointer: &str) -> &[Value] {
        self.0
            .pointer(pointer)
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }

    /// A commit; `None` when it isn't there or is the one of zeros, which stands for nothing.
    pub(super) fn commit(&self, pointer: &str) -> Result<Option<CommitId>, Malformed> {
        let Some(text) = self.text(pointer) else {
            return Ok(None);
        };
        if text.bytes().all(|byte| byte == b'0') {
            return Ok(None);
        }
        let commit = text.parse();
        commit
            .map(Some)
            .map_err(|_| Malformed(format!("`{pointer}` is no full commit id")))
    }

    /// The files that the listed commits add, change or remove; `None` when not every commit says so, or there is none.
    pub(super) fn files(&self, commits: &str) -> Option<Vec<String>> {
        let mut files = Vec::new();
        for commit in self.list(commits) {
            let mut told = false;
            for change in ["added", "modified", "removed"] {
                let Some(Value::Array(paths)) = commit.get(change) else {
                    continue;
                };
                told = true;
                files.extend(paths.iter().filter_map(Value::as_str).map(clean));
                if files.len() > MAX_FILES {
                    return None;
                }
            }
            if !told {
                return None;
            }
        }
        files.sort_unstable();
        files.dedup();
        (!files.is_empty()).then_some(files)
    }
}

fn missing(pointer: &str) -> Malformed {
    Malformed(format!("`{pointer}` is missing"))
}

/// What the database can hold, of a bounded length.
fn clean(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}

/// A pushed ref.
pub(super) enum Pushed<'r> {
    /// A branch by its short name.
    Branch(&'r str),
    /// A tag by its short name.
    Tag(&'r str),
    /// Something else, such as a note.
    Other,
}

/// What a full ref name stands for.
pub(super) fn pushed(reference: &str) -> Pushed<'_> {
    if let Some(branch) = reference.strip_prefix("refs/heads/") {
        Pushed::Branch(branch)
    } else if let Some(tag) = reference.strip_prefix("refs/tags/") {
        Pushed::Tag(tag)
    } else {
        Pushed::Other
    }
}
