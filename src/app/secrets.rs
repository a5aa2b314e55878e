//! The keys that secrets are encrypted with: `[secrets]` in the configuration, `KILN_SECRETS_KEY`, and their rotation.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use sqlx::PgPool;
use zeroize::Zeroizing;

use crate::{
    domain::secret::SecretText,
    http::Random,
    store::{
        self,
        secrets::{
            Stored,
            seal::{InvalidKey, Keyring, Place},
        },
    },
};

/// Environment variable with the key, or with several, separated by commas: the one to encrypt with first.
const VARIABLE: &str = "KILN_SECRETS_KEY";

/// Secrets that are read at once when keys are rotated.
const BATCH: u32 = 100;

/// Where the keys are.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// File with the key to encrypt with: 32 random bytes in base64. Without a key no secrets can be kept.
    pub key_file: Option<PathBuf>,
    /// Files with keys that secrets may still be encrypted with.
    pub previous_key_files: Vec<PathBuf>,
    /// Keys from the environment, in place of `key_file`.
    #[serde(skip)]
    pub keys: Option<SecretText>,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file can't be read.
    #[error("the key for secrets, {}, can't be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds no key.
    #[error("{place} holds no key for secrets: {source}")]
    Invalid {
        /// File or variable.
        place: String,
        /// What was expected.
        source: InvalidKey,
    },
    /// There is none.
    #[error("no key for secrets is configured: set `secrets.key_file` or {VARIABLE}")]
    Missing,
    /// The file can't be made.
    #[error("the key for secrets, {}, can't be made: {source}", path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Secrets {
    /// What the environment says.
    pub(super) fn from_environment() -> Option<SecretText> {
        std::env::var(VARIABLE)
            .ok()
            .filter(|keys| !keys.is_empty())
            .map(SecretText::new)
    }

    /// Whether nobody has configured a key.
    pub(super) const fn is_unset(&self) -> bool {
        self.keys.is_none() && self.key_file.is_none()
    }

    /// The keys, read from where they are. Empty when there are none.
    pub fn keyring(&self) -> Result<Keyring, KeyError> {
        let mut keys: Vec<(String, Zeroizing<String>)> = Vec::new();
        if let Some(listed) = &self.keys {
            let listed = listed.expose().split(',');
            keys.extend(listed.map(|key| (VARIABLE.to_owned(), Zeroizing::new(key.to_owned()))));
        }
        let current = self.key_file.as_ref().filter(|_| self.keys.is_none());
        for path in current.into_iter().chain(&self.previous_key_files) {
            let text = fs::read_to_string(path).map_err(|source| KeyError::Read {
                path: path.clone(),
                source,
            })?;
            keys.push((path.display().to_string(), Zeroizing::new(text)));
        }
        for (place, key) in &keys {
            Keyring::parse([key.as_str()]).map_err(|source| KeyError::Invalid {
                place: place.clone(),
                source,
            })?;
        }
        Keyring::parse(keys.iter().map(|(_, key)| key.as_str())).map_err(|source| KeyError::Invalid {
            place: VARIABLE.to_owned(),
            source,
        })
    }
}

/// Makes a file with a new key, which only its owner may read, unless there is one.
pub(super) fn ensure_key(path: &Path, random: &Random) -> Result<(), KeyError> {
    let failed = |source| KeyError::Make {
        path: path.to_owned(),
        source,
    };
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(random.bytes());
    let key = Zeroizing::new(format!("{}\n", BASE64_STANDARD.encode(*bytes)));
    file.write_all(key.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)
}

/// What a rotation came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rotated {
    /// Secrets that are encrypted with the current key now.
    pub done: u64,
    /// Secrets that can't be decrypted with any key that is there, as `project/name`.
    pub stuck: Vec<String>,
}

/// Encrypts with the current key what another one has encrypted. Can be repeated, and runs beside the service.
pub async fn rotate(pool: &PgPool, keyring: &Keyring, random: &Random) -> Result<Rotated, RotateError> {
    let current = keyring.current().map_err(|_| KeyError::Missing)?;
    let mut rotated = Rotated::default();
    let mut last: Option<Stored> = None;
    loop {
        let after = last
            .as_ref()
            .map(|stored| (&stored.secret.project, &stored.secret.name));
        let batch = store::secrets::sealed_otherwise(pool, current, after, BATCH).await?;
        for stored in &batch {
            let place = Place {
                project: &stored.secret.project,
                name: &stored.secret.name,
                kind: stored.secret.kind,
            };
            let resealed = keyring
                .open(place, &stored.sealed)
                .and_then(|plaintext| keyring.seal(random.bytes(), place, &plaintext));
            match resealed {
                // What was changed in the meantime has the current key by that.
                Ok(sealed) => rotated.done += u64::from(store::secrets::reseal(pool, stored, &sealed).await?),
                Err(_) => rotated.stuck.push(format!("{}/{}", place.project, place.name)),
            }
        }
        match batch.into_iter().last() {
            Some(stored) => last = Some(stored),
            None => break,
        }
    }
    rotate_hooks(pool, keyring, random, current, &mut rotated).await?;
    Ok(rotated)
}

/// The same for what hooks share with their senders.
async fn rotate_hooks(
    pool: &PgPool,
    keyring: &Keyring,
    random: &Random,
    current: &str,
    rotated: &mut Rotated,
) -> Result<(), RotateError> {
    let mut last = None;
    loop {
        let batch = store::hooks::secrets::sealed_otherwise(pool, current, last, BATCH).await?;
        for shared in &batch {
            let resealed = keyring
                .open(shared.place, &shared.sealed)
                .and_then(|plaintext| keyring.seal(random.bytes(), shared.place, &plaintext));
            match resealed {
                Ok(sealed) => rotated.done += u64::from(store::hooks::secrets::reseal(pool, shared, &sealed).await?),
                Err(_) => rotated.stuck.push(format!("hook {}", shared.place.hook)),
            }
        }
        match batch.last() {
            Some(shared) => last = Some(shared.place),
            None => return Ok(()),
        }
    }
}

/// Why a rotation ended early.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// There is no key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The database said no.
    #[error(transparent)]
    Store(#[from] store::Error),
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_for_its_owner() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secrets.key");
        ensure_key(&path, &Random::system()).expect("makes it");
        let made = fs::read_to_string(&path).expect("reads");
        ensure_key(&path, &Random::system()).expect("finds it");
        assert_eq!(fs::read_to_string(&path).expect("reads"), made);
        let permissions = fs::metadata(&path).expect("there").permissions();
        assert_eq!(permissions.mode() & 0o777, 0o600);
        let secrets = Secrets {
            key_file: Some(path),
            ..Secrets::default()
        };
        assert!(secrets.keyring().expect("a key").current().is_ok());
    }

    #[test]
    fn the_environment_comes_before_the_file_and_shows_nothing() {
        let key = |byte| BASE64_STANDARD.encode([byte; 32]);
        let folder = tempfile::tempdir().expect("a folder");
        let previous = folder.path().join("previous");
        fs::write(&previous, key(3)).expect("writes");
        let secrets = Secrets {
            key_file: Some("/nowhere".into()),
            previous_key_files: vec![previous],
            keys: Some(SecretText::new(format!("{},{}", key(1), key(2)))),
        };
        let shown = format!("{secrets:?}");
        assert!(!shown.contains(&key(1)), "{shown}");
        let keyring = secrets.keyring().expect("keys");
        let first = Keyring::parse([key(1).as_str()]).expect("a key");
        assert_eq!(keyring.current(), first.current());

        assert!(Secrets::default().keyring().expect("none").current().is_err());
        let secrets = Secrets {
            keys: Some(SecretText::new("hunter2")),
            ..Secrets::default()
        };
        let error = secrets.keyring().expect_err("no key").to_string();
        assert!(error.contains(VARIABLE) && !error.contains("hunter2"), "{error}");
        let secrets = Secrets {
            key_file: Some("/nowhere".into()),
            ..Secrets::default()
        };
        assert!(secrets.keyring().expect_err("no file").to_string().contains("/nowhere"));
    }
}
