//! The span that something is part of, as it travels and is stored (W3C Trace Context, "traceparent header").

use std::str::FromStr;

use super::spec::Invalid;

/// A `traceparent` of version 00.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(String);

impl TraceParent {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TraceParent {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let hex = |part: &str, length| {
            part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        match *text.split('-').collect::<Vec<_>>() {
            ["00", trace, span, flags] if hex(trace, 32) && hex(span, 16) && hex(flags, 2) => Ok(Self(text.to_owned())),
            _ => Err(Invalid::new("expected a traceparent of version 00")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_stored_is_one() {
        let usual = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(usual.parse::<TraceParent>().expect("one").as_str(), usual);
        for text in [
            "",
            "00",
            &usual.to_uppercase(),
            &usual.replacen("00-", "01-", 1),
            &usual[..usual.len() - 1],
            &format!("{usual}-00"),
        ] {
            assert!(text.parse::<TraceParent>().is_err(), "{text}");
        }
    }
}
