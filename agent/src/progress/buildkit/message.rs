//! One line of `buildctl --progress=rawjson`: the client's `SolveStatus` (moby/buildkit, `client/graph.go`).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, de::Error as _};

/// What changed. All fields are lists that may be missing; a line without any of them isn't such a message.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Message {
    #[serde(default)]
    pub(super) vertexes: Option<Vec<Vertex>>,
    #[serde(default)]
    pub(super) statuses: Option<Vec<Status>>,
    #[serde(default)]
    pub(super) logs: Option<Vec<Log>>,
    #[serde(default)]
    pub(super) warnings: Option<Vec<Warning>>,
}

/// A vertex as it is now.
#[derive(Debug, Deserialize)]
pub(super) struct Vertex {
    pub(super) digest: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) started: Option<Time>,
    #[serde(default)]
    pub(super) completed: Option<Time>,
    #[serde(default)]
    pub(super) cached: bool,
    #[serde(default)]
    pub(super) error: String,
    #[serde(default, rename = "progressGroup")]
    pub(super) group: Option<Group>,
}

/// Vertices that show as one.
#[derive(Debug, Deserialize)]
pub(super) struct Group {
    pub(super) id: String,
    #[serde(default)]
    pub(super) name: String,
    /// Shown only beside others that aren't weak.
    #[serde(default)]
    pub(super) weak: bool,
}

/// How far something within a vertex is, such as the download of a layer.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) id: String,
    #[serde(default)]
    pub(super) vertex: String,
    #[serde(default)]
    pub(super) total: i64,
    #[serde(default)]
    pub(super) current: i64,
    pub(super) timestamp: Time,
    #[serde(default)]
    pub(super) started: Option<Time>,
    #[serde(default)]
    pub(super) completed: Option<Time>,
}

/// Output of a command.
#[derive(Debug, Deserialize)]
pub(super) struct Log {
    #[serde(default)]
    pub(super) vertex: String,
    /// 1 for standard output, 2 for standard error.
    #[serde(default)]
    pub(super) stream: i64,
    #[serde(deserialize_with = "bytes")]
    pub(super) data: Vec<u8>,
    pub(super) timestamp: Time,
}

/// Advice about the Dockerfile.
#[derive(Debug, Deserialize)]
pub(super) struct Warning {
    #[serde(default)]
    pub(super) vertex: String,
    #[serde(default, deserialize_with = "bytes")]
    pub(super) short: Vec<u8>,
}

impl Message {
    /// Reads a line; nothing when it is something else.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        if !line.starts_with(b"{") {
            return None;
        }
        let message: Self = serde_json::from_slice(line).ok()?;
        let empty = message.vertexes.is_none()
            && message.statuses.is_none()
            && message.logs.is_none()
            && message.warnings.is_none();
        (!empty).then_some(message)
    }
}

/// Go writes bytes in base64, and no bytes as null.
fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    BASE64_STANDARD.decode(text).map_err(D::Error::custom)
}

/// A moment, in microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time(pub(super) i64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_time(&text)
            .map(Self)
            .ok_or_else(|| D::Error::custom("not a time of RFC 3339"))
    }
}

/// Reads `2026-11-23T17:41:02.123456789Z` or the same with an offset such as `+02:00`.
fn parse_time(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let well_formed = marks.iter().all(|&(at, mark)| text.as_bytes().get(at) == Some(&mark));
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !well_formed || !in_range {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut micros = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.find(|c: char| !c.is_ascii_digit())?;
        let digits = format!("{:0<6}", &fraction[..end.min(6)]);
        micros = digits.parse().ok()?;
        rest = &fraction[end..];
    }
    let offset = match rest.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let minutes = rest.get(1..3)?.parse::<i64>().ok()? * 60 + rest.get(4..6)?.parse::<i64>().ok()?;
            if *sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + (minute - offset) * 60 + second;
    Some(seconds * 1_000_000 + micros)
}

/// Days since 1970-01-01 in the Gregorian calendar, counting years from March so that the leap day comes last.
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_as_go_writes_them() {
        for (text, micros) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-03-01T00:00:00.5Z", Some(951_868_800_500_000)),
            ("2026-11-23T18:19:18.123456789Z", Some(1_795_457_958_123_456)),
            ("2026-11-23T20:19:18.123456+02:00", Some(1_795_457_958_123_456)),
            ("2026-11-23T12:49:18-05:30", Some(1_795_457_958_000_000)),
            ("0001-01-01T00:00:00Z", Some(-62_135_596_800_000_000)),
            ("2026-11-23 18:19:18Z", None),
            ("2026-13-23T18:19:18Z", None),
            ("2026-11-23T18:19:18", None),
            ("2026-11-23T18:19:18.5", None),
            ("", None),
        ] {
            assert_eq!(parse_time(text), micros, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in "\\PC{0,40}", time in "[0-9TZ:.+-]{15,35}") {
            let _ = (parse_time(&text), parse_time(&time), Message::parse(text.as_bytes()));
        }
    }
}
