//! CPU, memory and disk of a build, in Kubernetes' notation.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Invalid;

/// What a build may use: requests and limits of its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// Processor time.
    pub cpu: CpuMillis,
    /// Memory.
    pub memory: MemoryBytes,
    /// Local disk.
    pub disk: MemoryBytes,
}

/// Processor time in thousandths of a core; written `2`, `0.5` or `500m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "2")]
pub struct CpuMillis(pub u32);

impl FromStr for CpuMillis {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || Invalid::new("expected cores such as `2`, `0.5` or `500m`, at most three decimals");
        let millis = if let Some(millis) = text.strip_suffix('m') {
            digits(millis).ok_or_else(expected)?
        } else {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            if fraction.len() > 3 || (text.contains('.') && fraction.is_empty()) {
                return Err(expected());
            }
            let fraction = if fraction.is_empty() {
                0
            } else {
                digits(&format!("{fraction:0<3}")).ok_or_else(expected)?
            };
            digits(whole)
                .and_then(|cores| cores.checked_mul(1000)?.checked_add(fraction))
                .ok_or_else(expected)?
        };
        match u32::try_from(millis) {
            Ok(millis) if millis > 0 => Ok(Self(millis)),
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for CpuMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            write!(f, "{}", self.0 / 1000)
        } else {
            write!(f, "{}m", self.0)
        }
    }
}

/// An amount of bytes; written `512Mi`, `4Gi`, `500M` or as a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "4Gi")]
pub struct MemoryBytes(pub u64);

const UNITS: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl FromStr for MemoryBytes {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
            .unwrap_or((text, 1));
        match digits(number).and_then(|number| number.checked_mul(unit)) {
            Some(bytes) if bytes > 0 && i64::try_from(bytes).is_ok() => Ok(Self(bytes)),
            _ => Err(Invalid::new("expected an amount such as `512Mi`, `4Gi` or `500M`")),
        }
    }
}

impl fmt::Display for MemoryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, unit)| self.0.is_multiple_of(*unit)) {
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

macro_rules! text_form {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}
text_form!(CpuMillis);
text_form!(MemoryBytes);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores() {
        for (text, millis) in [("2", 2000), ("0.5", 500), ("1.25", 1250), ("500m", 500), ("0.001", 1)] {
            assert_eq!(text.parse(), Ok(CpuMillis(millis)), "{text}");
        }
        for text in ["", "0", "0m", "-1", "1.2345", "1.", ".5", "two", "1e3", "99999999999"] {
            assert!(text.parse::<CpuMillis>().is_err(), "{text}");
        }
        assert_eq!(CpuMillis(2000).to_string(), "2");
        assert_eq!(CpuMillis(1250).to_string(), "1250m");
    }

    #[test]
    fn amounts() {
        for (text, bytes) in [
            ("4Gi", 4 << 30),
            ("512Mi", 512 << 20),
            ("500M", 500_000_000),
            ("1024", 1024),
        ] {
            assert_eq!(text.parse(), Ok(MemoryBytes(bytes)), "{text}");
        }
        for text in ["", "0", "4GB", "-4Gi", "4 Gi", "1.5Gi", "99999999Ti"] {
            assert!(text.parse::<MemoryBytes>().is_err(), "{text}");
        }
        assert_eq!(MemoryBytes(4 << 30).to_string(), "4Gi");
        assert_eq!(MemoryBytes(1001).to_string(), "1001");
    }
}
