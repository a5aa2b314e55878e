//! What a hook and its sender share.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

/// Of a secret that was made here; the form of Standard Webhooks, which GitLab asks for.
const PREFIX: &str = "whsec_";
/// Random bytes in a secret.
pub const BYTES: usize = 32;

/// A hook's secret. Its `Debug` form doesn't show it.
#[derive(Clone, PartialEq, Eq)]
pub struct HookSecret(Zeroizing<String>);

impl HookSecret {
    /// One of the given random bytes.
    pub fn from_random(bytes: [u8; BYTES]) -> Self {
        Self(Zeroizing::new(format!("{PREFIX}{}", BASE64_STANDARD.encode(bytes))))
    }

    /// One that was stored.
    pub fn from_text(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret, to be shown once to its maker.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookSecret(…)")
    }
}

/// The key of Standard Webhooks that a secret stands for: what is encoded in it, or itself.
pub(super) fn key(secret: &str) -> Zeroizing<Vec<u8>> {
    let encoded = secret.strip_prefix(PREFIX);
    let decoded = encoded.and_then(|encoded| BASE64_STANDARD.decode(encoded).ok());
    Zeroizing::new(decoded.unwrap_or_else(|| secret.as_bytes().to_vec()))
}
