//! Values of flags.

use std::{str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// `NAME=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair(pub String, pub String);

pub(in crate::client) fn pair(text: &str) -> Result<Pair, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(Pair(name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// `NAME=VALUE`, or `NAME` for the value of the variable of that name.
pub(in crate::client) fn argument(text: &str) -> Result<Pair, String> {
    if text.contains('=') {
        return pair(text);
    }
    match std::env::var(text) {
        Ok(value) if !text.is_empty() => Ok(Pair(text.to_owned(), value)),
        _ => Err("expected NAME=VALUE, or the name of a variable that is set".to_owned()),
    }
}

/// `MOUNT=NAME`; just a name means both.
pub(in crate::client) fn secret(text: &str) -> Result<Pair, String> {
    let expected = "expected MOUNT=NAME: the id in the Dockerfile's --mount=type=secret, and the project's secret";
    match text.split_once('=') {
        None if !text.is_empty() => Ok(Pair(text.to_owned(), text.to_owned())),
        Some((mount, name)) if !mount.is_empty() && !name.is_empty() && !name.contains([',', '=']) => {
            Ok(Pair(mount.to_owned(), name.to_owned()))
        }
        _ => Err(expected.to_owned()),
    }
}

/// Seconds, or a number with a unit: `90s`, `30m`, `2h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    match seconds {
        Some(seconds) if factor > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("expected seconds, or a number with a unit such as 90s, 30m, 2h or 7d".to_owned()),
    }
}

/// A time, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// That time.
    At(DateTime<Utc>),
    /// That long before now.
    Ago(Duration),
}

pub(super) fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(Moment::At(time.to_utc()));
    }
    let ago = duration(text).map(Moment::Ago);
    ago.map_err(|_| "expected a time such as 2030-01-31T12:00:00Z, or how long ago: 90s, 30m, 2h or 7d".to_owned())
}

/// Which build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildName {
    /// Its id.
    Whole(Uuid),
    /// The first digits of its id, lower-case and without dashes.
    Prefix(String),
}

impl BuildName {
    /// Fewest digits that are looked for: fewer would stand for all builds of more than a minute.
    const SHORTEST: usize = 8;
    /// Digits of an id that hold the time of its making, in milliseconds (RFC 9562, section 5.7).
    const TIME: usize = 12;

    /// When ids that begin like this were made: not before the first time, and before the second.
    pub(in crate::client) fn made(prefix: &str) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let digits = &prefix[..prefix.len().min(Self::TIME)];
        let number = i64::from_str_radix(digits, 16).ok()?;
        let unknown = 4 * (Self::TIME - digits.len());
        let at = |number: i64| DateTime::from_timestamp_millis(number << unknown);
        Some((at(number)?, at(number + 1)?))
    }
}

impl FromStr for BuildName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if let Ok(id) = text.parse() {
            return Ok(Self::Whole(id));
        }
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if hexadecimal && (Self::SHORTEST..32).contains(&digits.len()) {
            return Ok(Self::Prefix(digits.to_ascii_lowercase()));
        }
        Err(format!(
            "expected a build's id as `kiln list` shows it, or its first {} characters or more",
            Self::SHORTEST
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_moments() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("30m"), Ok(Duration::from_mins(30)));
        assert_eq!(duration("7d"), Ok(Duration::from_hours(168)));
        for bad in ["", "m", "1w", "-5", "99999999999999999999h", "1h30m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(moment("2h"), Ok(Moment::Ago(Duration::from_hours(2))));
        assert_eq!(
            moment("1970-01-01T01:00:00+01:00"),
            Ok(Moment::At(DateTime::UNIX_EPOCH))
        );
        assert!(moment("yesterday").is_err());
    }

    #[test]
    fn pairs_and_secrets() {
        let two = |a: &str, b: &str| Ok(Pair(a.to_owned(), b.to_owned()));
        assert_eq!(pair("a=b=c"), two("a", "b=c"));
        assert_eq!(pair("a="), two("a", ""));
        assert!(pair("=b").is_err() && pair("a").is_err());
        assert!(argument("KILN_NO_SUCH_VARIABLE").is_err());
        assert_eq!(secret("npm=npm-token"), two("npm", "npm-token"));
        assert_eq!(secret("npm"), two("npm", "npm"));
        for bad in ["", "=x", "x=", "id=npm,src=x"] {
            assert!(secret(bad).is_err(), "{bad}");
        }
    }
    #[test]
    fn builds_are_named_by_their_ids_or_how_they_begin() {
        let id = Uuid::from_u128(0x019f_0a1b_2c3d_7e4f_8071_92a3_b4c5_d6e7);
        let whole = id.to_string();
        for text in [
            whole.clone(),
            whole.to_uppercase(),
            id.simple().to_string(),
            format!(" {whole}\n"),
        ] {
            assert_eq!(text.parse(), Ok(BuildName::Whole(id)), "{text:?}");
        }
        for (text, digits) in [
            ("019f0a1b", "019f0a1b"),
            ("019F0A1B-2", "019f0a1b2"),
            ("019f0a1b-2c3d-7e4f-8071-92a3b4c5d6e", "019f0a1b2c3d7e4f807192a3b4c5d6e"),
        ] {
            assert_eq!(text.parse(), Ok(BuildName::Prefix(digits.to_owned())), "{text}");
        }
        for bad in [
            "",
            "7",
            "019f0a1",
            "019f0a1-",
            "team/app",
            "019f0a1b2c3d7e4f807192a3b4c5d6e7f",
            "019f0a1bx",
        ] {
            let error = bad.parse::<BuildName>().expect_err(bad);
            assert!(error.contains("`kiln list`"), "{error}");
        }
        let (from, to) = BuildName::made("019f0a1b").expect("times");
        assert_eq!((to - from).num_milliseconds(), 0x1_0000);
        let (from, to) = BuildName::made("019f0a1b2c3d7").expect("times");
        assert_eq!(
            (from.timestamp_millis(), to.timestamp_millis()),
            (0x019f_0a1b_2c3d, 0x019f_0a1b_2c3e)
        );
    }
}
