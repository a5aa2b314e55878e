//! How secrets are encrypted at rest: AES-256-GCM, with a random nonce for each and the secret's place as associated
//! data. The keys come from outside the database.

use std::{fmt, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::domain::{
    hook::HookId,
    project::ProjectName,
    secret::{SecretKind, SecretName},
};

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;

/// Why something could not be encrypted or decrypted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is no key to encrypt with.
    #[error("no key for secrets is configured")]
    NoKey,
    /// It was encrypted with a key that isn't there.
    #[error("the key {0} is not configured")]
    UnknownKey(String),
    /// It was changed, or belongs to another secret.
    #[error("what is stored isn't what was encrypted")]
    Broken,
}

/// The text isn't a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 32 random bytes in base64, as `openssl rand -base64 32` prints them")]
pub struct InvalidKey;

/// A key, known to the database by its fingerprint.
struct SecretKey {
    id: String,
    key: LessSafeKey,
}

impl SecretKey {
    fn parse(text: &str) -> Result<Self, InvalidKey> {
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(text.trim()).map_err(|_| InvalidKey)?);
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| InvalidKey)?;
        // The key is random, so its fingerprint gives nothing away.
        let mut fingerprint = Sha256::new_with_prefix(b"kiln secrets key");
        fingerprint.update(&*bytes);
        Ok(Self {
            id: hex::encode(&fingerprint.finalize()[..8]),
            key: LessSafeKey::new(key),
        })
    }
}

/// The keys of an installation: the first encrypts, all decrypt. Clones are the same keys.
#[derive(Clone, Default)]
pub struct Keyring(Arc<[SecretKey]>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

/// What something is encrypted for. It can't be decrypted as anything else.
pub trait SealedFor: Copy {
    /// Bytes that no two places have in common.
    fn associated_data(&self) -> Vec<u8>;
}

/// What a secret is stored for.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The project.
    pub project: &'a ProjectName,
    /// The secret's name.
    pub name: &'a SecretName,
    /// The secret's kind.
    pub kind: SecretKind,
}

impl SealedFor for Place<'_> {
    /// None of the parts can hold a NUL, so no two places give the same bytes.
    fn associated_data(&self) -> Vec<u8> {
        [
            "kiln secret 1",
            self.project.as_str(),
            self.name.as_str(),
            self.kind.as_str(),
        ]
        .join("\0")
        .into_bytes()
    }
}

/// What a hook shares with its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookPlace {
    /// The hook.
    pub hook: HookId,
    /// Which of its secrets.
    pub number: i32,
}

impl SealedFor for HookPlace {
    fn associated_data(&self) -> Vec<u8> {
        format!("kiln hook 1\0{}\0{}", self.hook, self.number).into_bytes()
    }
}

/// What the database holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Fingerprint of the key.
    pub key_id: String,
    /// Used once.
    pub nonce: [u8; NONCE_BYTES],
    /// Ciphertext and tag.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl Keyring {
    /// A keyring of keys as text, the one to encrypt with first.
    pub fn parse<'t>(keys: impl IntoIterator<Item = &'t str>) -> Result<Self, InvalidKey> {
        Ok(Self(keys.into_iter().map(SecretKey::parse).collect::<Result<_, _>>()?))
    }

    /// Fingerprint of the key to encrypt with.
    pub fn current(&self) -> Result<&str, SealError> {
        Ok(&self.0.first().ok_or(SealError::NoKey)?.id)
    }

    /// Encrypts. A nonce must never be used twice: it is to be random.
    pub fn seal(&self, nonce: [u8; NONCE_BYTES], place: impl SealedFor, plaintext: &[u8]) -> Result<Sealed, SealError> {
        let SecretKey { id, key } = self.0.first().ok_or(SealError::NoKey)?;
        // Made long enough for the tag, so that no copy of the plaintext is left behind.
        let mut bytes = Vec::with_capacity(plaintext.len() + AES_256_GCM.tag_len());
        bytes.extend_from_slice(plaintext);
        let aad = Aad::from(place.associated_data());
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut bytes)
            .map_err(|_| SealError::Broken)?;
        Ok(Sealed {
            key_id: id.clone(),
            nonce,
            bytes,
        })
    }

    /// Decrypts what was encrypted for the same place.
    pub fn open(&self, place: impl SealedFor, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let unknown = || SealError::UnknownKey(sealed.key_id.clone());
        let SecretKey { key, .. } = self.0.iter().find(|key| key.id == sealed.key_id).ok_or_else(unknown)?;
        let mut bytes = Zeroizing::new(sealed.bytes.clone());
        let nonce = Nonce::assume_unique_for_key(sealed.nonce);
        let length = key
            .open_in_place(nonce, Aad::from(place.associated_data()), &mut bytes)
            .map_err(|_| SealError::Broken)?
            .len();
        bytes.truncate(length);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> String {
        BASE64_STANDARD.encode([byte; 32])
    }

    fn keyring(bytes: &[u8]) -> Keyring {
        let keys: Vec<_> = bytes.iter().map(|byte| key(*byte)).collect();
        Keyring::parse(keys.iter().map(String::as_str)).expect("keys")
    }

    fn name<T: std::str::FromStr<Err: fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a name")
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_at_its_place_only(
            plaintext in proptest::collection::vec(any::<u8>(), 0..200), nonce: [u8; NONCE_BYTES], flip in 0usize..1000,
        ) {
            let (project, secret) = (name("team"), name("forge"));
            let place = Place { project: &project, name: &secret, kind: SecretKind::Git };
            let old = keyring(&[1]);
            let sealed = old.seal(nonce, place, &plaintext).expect("seals");

            // A key that was rotated out still opens; one that was taken away doesn't.
            let rotated = keyring(&[2, 1]);
            prop_assert_eq!(&**rotated.open(place, &sealed).expect("opens"), &plaintext);
            prop_assert_eq!(keyring(&[2]).open(place, &sealed), Err(SealError::UnknownKey(sealed.key_id.clone())));
            prop_assert_ne!(rotated.current(), old.current());

            let (other_project, other_name) = (name("other"), name("forge2"));
            for place in [
                Place { project: &other_project, ..place },
                Place { name: &other_name, ..place },
                Place { kind: SecretKind::Build, ..place },
            ] {
                prop_assert_eq!(old.open(place, &sealed), Err(SealError::Broken));
            }
            let mut changed = sealed.clone();
            let at = flip % changed.bytes.len();
            changed.bytes[at] ^= 1;
            prop_assert_eq!(old.open(place, &changed), Err(SealError::Broken));
            let mut changed = sealed;
            changed.nonce[flip % NONCE_BYTES] ^= 1;
            prop_assert_eq!(old.open(place, &changed), Err(SealError::Broken));
        }
    }

    #[test]
    fn keys_are_thirty_two_bytes_and_stay_hidden() {
        assert!(Keyring::parse([format!("{}\n", key(7)).as_str()]).is_ok());
        for bad in ["", "hunter2", &BASE64_STANDARD.encode([7; 16]), &hex::encode([7; 32])] {
            assert_eq!(Keyring::parse([bad]).expect_err(bad), InvalidKey);
        }
        let shown = format!("{:?}", keyring(&[7]));
        assert!(!shown.contains(&key(7)) && !shown.contains("7, 7"), "{shown}");
        assert_eq!(Keyring::default().current(), Err(SealError::NoKey));
    }
}
