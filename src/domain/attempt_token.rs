//! What an attempt shows to the service to get, and to hand in, what is its own. The token follows from the attempt and
//! a key of the installation, so that it needs no storage, any replica can check it, and a pod that is created a second
//! time has the same one. Whoever takes it also asks whether the attempt is still live.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::id::AttemptId;

/// Sets these tokens apart from those of callers.
const PREFIX: &str = "kilnattempt_";

/// What a token is good for, and for nothing else: a container that has one can't do what another's allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Getting the archive that the attempt is to build from.
    Upload,
    /// Handing in the attempt's log.
    Log,
}

impl Purpose {
    /// Goes into the token in front of the attempt; ends with a byte that no other begins with.
    const fn tag(self) -> &'static [u8] {
        match self {
            Self::Upload => b"kiln attempt\0",
            Self::Log => b"kiln attempt log\0",
        }
    }
}

/// The key that tokens are made with.
#[derive(Clone, PartialEq, Eq)]
pub struct AttemptKey([u8; Self::LEN]);

impl AttemptKey {
    /// Bytes of a key.
    pub const LEN: usize = 32;

    /// A key of these bytes.
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be stored.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The attempt's token for one purpose.
    pub fn token(&self, attempt: AttemptId, purpose: Purpose) -> AttemptToken {
        AttemptToken(format!(
            "{PREFIX}{}",
            hex::encode(self.mac(attempt, purpose).finalize().into_bytes())
        ))
    }

    /// Whether this text is the attempt's token for the purpose. Takes the same time whatever the text is.
    pub fn verifies(&self, attempt: AttemptId, purpose: Purpose, text: &str) -> bool {
        text.strip_prefix(PREFIX)
            .and_then(|digits| hex::decode(digits).ok())
            .is_some_and(|bytes| self.mac(attempt, purpose).verify_slice(&bytes).is_ok())
    }

    fn mac(&self, attempt: AttemptId, purpose: Purpose) -> Hmac<Sha256> {
        // Unwrap safety: HMAC takes keys of any length.
        #[expect(clippy::expect_used, reason = "can't fail")]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("a key of any length");
        mac.update(purpose.tag());
        mac.update(attempt.to_string().as_bytes());
        mac
    }
}

impl fmt::Debug for AttemptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttemptKey(…)")
    }
}

/// An attempt's token.
#[derive(Clone, PartialEq, Eq)]
pub struct AttemptToken(String);

impl AttemptToken {
    /// The token itself, for the attempt only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AttemptToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttemptToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::BuildId;

    #[test]
    fn a_token_is_good_for_its_attempt_and_purpose_only() {
        let key = AttemptKey::from_bytes([7; 32]);
        let attempt = |number| AttemptId {
            build: BuildId(uuid::uuid!("0191d2a0-7c1e-7000-8000-000000000001")),
            number,
        };
        let token = key.token(attempt(1), Purpose::Upload);
        assert_eq!(token, key.token(attempt(1), Purpose::Upload));
        assert!(key.verifies(attempt(1), Purpose::Upload, token.expose()));
        assert!(!key.verifies(attempt(11), Purpose::Upload, token.expose()));
        assert!(!key.verifies(attempt(1), Purpose::Log, token.expose()));
        let log = key.token(attempt(1), Purpose::Log);
        assert!(key.verifies(attempt(1), Purpose::Log, log.expose()));
        assert!(!key.verifies(attempt(1), Purpose::Upload, log.expose()));
        assert!(!AttemptKey::from_bytes([8; 32]).verifies(attempt(1), Purpose::Upload, token.expose()));
        for text in [
            "",
            PREFIX,
            "kiln_x",
            &token.expose()[..30],
            &format!("{}00", token.expose()),
        ] {
            assert!(!key.verifies(attempt(1), Purpose::Upload, text), "{text}");
        }
        assert!(!format!("{token:?}{key:?}").contains(&token.expose()[PREFIX.len()..]));
    }
}
