//! Secrets of projects: bodies of `PUT …/secrets/{name}`, what is stored of them, and keys.
#![no_main]

use kiln::{
    domain::secret::{NewSecret, SecretData, SecretKind},
    store::secrets::seal::Keyring,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(document) = serde_json::from_slice(body) {
        match NewSecret::read(&document) {
            Ok(secret) => {
                let kind = secret.data.kind();
                let stored = secret.data.to_plaintext();
                assert_eq!(SecretData::from_plaintext(kind, &stored).as_ref(), Ok(&secret.data));
            }
            Err(errors) => assert!(!errors.is_empty()),
        }
    }
    for kind in [SecretKind::Git, SecretKind::Registry, SecretKind::Build] {
        let _ = SecretData::from_plaintext(kind, body);
    }
    if let Ok(text) = std::str::from_utf8(body) {
        let _ = Keyring::parse(text.lines());
    }
});
