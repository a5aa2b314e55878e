//! Bearer tokens and stream tickets: `kiln_` or `kilnst_` and 32 random bytes. The database holds their SHA-256 only; they are too long to be guessed,
//! so no slow hash is needed.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

const BYTES: usize = 32;

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name(String);

        impl $name {
            /// One of the given random bytes.
            pub fn from_random(bytes: [u8; BYTES]) -> Self {
                Self(format!("{}{}", $prefix, BASE64_URL_SAFE_NO_PAD.encode(bytes)))
            }

            /// Reads one as a caller sent it. `None` when it can't be one.
            pub fn parse(text: &str) -> Option<Self> {
                let encoded = text.strip_prefix($prefix)?;
                let bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded).ok()?;
                (bytes.len() == BYTES).then(|| Self(text.to_owned()))
            }

            /// What the database knows it by.
            pub fn hash(&self) -> [u8; 32] {
                Sha256::digest(&self.0).into()
            }

            /// The secret, to be shown once to its maker.
            pub fn expose(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    };
}

secret! {
    /// A token in the clear. Its `Debug` form doesn't show it.
    BearerToken, "kiln_"
}

secret! {
    /// A ticket for streams in the clear. Its `Debug` form doesn't show it.
    StreamTicket, "kilnst_"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tokens_read_back_and_stay_hidden(bytes: [u8; 32]) {
            let token = BearerToken::from_random(bytes);
            prop_assert_eq!(BearerToken::parse(token.expose()), Some(token.clone()));
            let debug = format!("{token:?}");
            prop_assert!(!debug.contains(&token.expose()[5..]));
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let good = BearerToken::from_random([7; 32]);
        for text in [
            "",
            "kiln_",
            "kiln_abc",
            &good.expose()[5..],
            &format!("{}A", good.expose()),
            &format!("{} ", good.expose()),
        ] {
            assert_eq!(BearerToken::parse(text), None, "{text}");
        }
    }
}
