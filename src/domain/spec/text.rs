//! Short checked texts: names and values that end up as single arguments of a builder.

use std::{fmt, str::FromStr};

use super::Invalid;

/// Declares a text type whose only way in is a check; the check returns what would have been right.
macro_rules! checked_text {
    ($(#[$meta:meta])* $name:ident, $check:expr) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        #[schema(value_type = String)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let check: fn(&str) -> Result<(), Invalid> = $check;
                check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}
pub(crate) use checked_text;

/// Refuses text that isn't `what`.
fn expect(valid: bool, what: &str) -> Result<(), Invalid> {
    if valid {
        Ok(())
    } else {
        Err(Invalid::new(format!("expected {what}")))
    }
}

checked_text! {
    /// Name of a Dockerfile `ARG`.
    BuildArgName, |text| expect(
        (1..=128).contains(&text.len())
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
        "letters, digits and underscores, not starting with a digit, at most 128 bytes",
    )
}

checked_text! {
    /// Value of a Dockerfile `ARG`.
    BuildArgValue, |text| expect(text.len() <= 4096 && !text.contains('\0'), "at most 4096 bytes without NUL")
}

checked_text! {
    /// Name of a Dockerfile stage (`FROM … AS name`), or its number.
    StageName, |text| expect(
        (1..=128).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')),
        "a stage name: letters, digits, `-`, `_` and `.`, starting with a letter or digit, at most 128 bytes",
    )
}

checked_text! {
    /// Key of an image label, as the OCI annotation rules want it.
    LabelKey, |text| expect(
        (1..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/')),
        "letters, digits, `-`, `_`, `.` and `/`, at most 128 bytes",
    )
}

checked_text! {
    /// Value of an image label.
    LabelValue, |text| expect(
        text.len() <= 1024 && !text.contains(['\0', '\n', '\r']),
        "one line of at most 1024 bytes",
    )
}

checked_text! {
    /// What an image runs on: `os/arch` or `os/arch/variant`.
    Platform, |text| expect(
        text.len() <= 64
            && (2..=3).contains(&text.split('/').count())
            && text.split('/').all(|part| {
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            }),
        "`os/arch` or `os/arch/variant`, such as `linux/amd64`",
    )
}

impl Platform {
    /// What most clusters run on.
    pub fn linux_amd64() -> Self {
        Self("linux/amd64".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn rule<T: FromStr<Err = Invalid>>(good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(text.parse::<T>().is_ok(), "{text:?}");
        }
        for text in bad {
            assert!(text.parse::<T>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn each_type_accepts_what_its_rule_says() {
        let long = "a".repeat(129);
        rule::<BuildArgName>(
            &["A", "_a1", "HTTP_PROXY"],
            &["", "1A", "A-B", "A=B", "A B", "É", &long],
        );
        rule::<BuildArgValue>(&["", "a b", "--x", "a\nb", "é"], &["a\0", &"a".repeat(4097)]);
        rule::<StageName>(&["final", "0", "a.b-c_d"], &["", "-x", ".x", "a b", "a/b", &long]);
        rule::<LabelKey>(
            &["org.opencontainers.image.source", "a/b"],
            &["", "a b", "a=b", "é", &long],
        );
        rule::<LabelValue>(&["", "a b = c", "é"], &["a\nb", "a\r", "a\0", &"a".repeat(1025)]);
        rule::<Platform>(
            &["linux/amd64", "linux/arm/v7"],
            &[
                "",
                "linux",
                "linux/",
                "Linux/amd64",
                "a/b/c/d",
                "linux/amd64,linux/arm64",
                &format!("a/{}", "b".repeat(64)),
            ],
        );
    }

    proptest! {
        #[test]
        fn what_was_accepted_reads_back(text in "\\PC{0,8}") {
            fn same<T: FromStr<Err = Invalid> + fmt::Display + PartialEq + fmt::Debug>(text: &str) {
                if let Ok(value) = text.parse::<T>() {
                    assert_eq!(value.to_string(), text);
                }
            }
            same::<BuildArgName>(&text);
            same::<BuildArgValue>(&text);
            same::<StageName>(&text);
            same::<LabelKey>(&text);
            same::<LabelValue>(&text);
            same::<Platform>(&text);
        }
    }
}
