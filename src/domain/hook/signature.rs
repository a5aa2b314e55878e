//! Comparing what was sent with what is known, in time that doesn't depend on either.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::{Incoming, secret};

/// How far a timestamp of Standard Webhooks may be from now; what the specification's own libraries allow.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);

fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    // Unwrap: HMAC takes keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

/// Whether this is the HMAC-SHA256 of these parts.
pub(super) fn is_mac(key: &[u8], parts: &[&[u8]], given: &[u8]) -> bool {
    mac(key, parts).verify_slice(given).is_ok()
}

/// Whether this is the HMAC-SHA256 of the body in hexadecimal digits, behind a prefix such as `sha256=`.
pub(super) fn is_hex_mac(key: &str, body: &[u8], prefix: &str, given: &str) -> bool {
    given
        .strip_prefix(prefix)
        .and_then(|digits| hex::decode(digits).ok())
        .is_some_and(|given| is_mac(key.as_bytes(), &[body], &given))
}

/// Whether two texts are the same.
pub(super) fn same(expected: &str, given: &str) -> bool {
    // Of equal length whatever is compared, and not to be foreseen without the expected text.
    let tag = mac(expected.as_bytes(), &[given.as_bytes()]).finalize().into_bytes();
    is_mac(expected.as_bytes(), &[expected.as_bytes()], &tag)
}

/// Whether a time is within `tolerance` of now.
pub(super) fn is_recent(at: Option<DateTime<Utc>>, tolerance: TimeDelta, now: DateTime<Utc>) -> bool {
    at.is_some_and(|at| now.signed_duration_since(at).abs() <= tolerance)
}

/// Whether the headers of Standard Webhooks sign id, timestamp and body
/// (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>).
/// `None` when there is no such signature.
pub(super) fn standard(secret: &str, incoming: &Incoming<'_>, now: DateTime<Utc>) -> Option<bool> {
    let signatures = incoming.header("webhook-signature")?;
    let (Some(id), Some(timestamp)) = (incoming.header("webhook-id"), incoming.header("webhook-timestamp")) else {
        return Some(false);
    };
    let at = timestamp
        .parse()
        .ok()
        .and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let key = secret::key(secret);
    let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", incoming.body];
    // Several while the sender changes its key.
    let signed = signatures
        .split(' ')
        .filter_map(|one| one.strip_prefix("v1,"))
        .fold(false, |fits, encoded| {
            let given = BASE64_STANDARD.decode(encoded).unwrap_or_default();
            is_mac(&key, &parts, &given) | fits
        });
    Some(signed && is_recent(at, TOLERANCE, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_the_documentation_verify() {
        // https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
        let secret = "It's a Secret to Everybody";
        let github = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(is_hex_mac(secret, b"Hello, World!", "sha256=", github));
        // https://support.atlassian.com/bitbucket-cloud/docs/manage-webhooks/
        let bitbucket = "sha256=a4771c39fbe90f317c7824e83ddef3caae9cb3d976c214ace1f2937e133263c9";
        assert!(is_hex_mac(secret, b"Hello World!", "sha256=", bitbucket));
        for wrong in ["", "sha256=", &github[7..], "sha256=zz", &bitbucket[..60]] {
            assert!(!is_hex_mac(secret, b"Hello World!", "sha256=", wrong), "{wrong}");
        }
    }

    #[test]
    fn the_vector_of_standard_webhooks_verifies_in_its_time() {
        // https://github.com/standard-webhooks/standard-webhooks/blob/main/libraries/python/tests/test_webhook.py
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut incoming = Incoming {
            headers: [
                header("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
                header("webhook-timestamp", "1614265330"),
                header(
                    "webhook-signature",
                    "v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
                ),
            ]
            .into(),
            token: None,
            body: br#"{"test": 2432232314}"#,
        };
        let sent = DateTime::from_timestamp(1_614_265_330, 0).expect("a time");
        assert_eq!(standard(secret, &incoming, sent), Some(true));
        assert_eq!(standard(secret, &incoming, sent + TOLERANCE), Some(true));
        for now in [sent + TimeDelta::seconds(301), sent - TimeDelta::seconds(301)] {
            assert_eq!(standard(secret, &incoming, now), Some(false));
        }
        assert_eq!(standard("whsec_AAAA", &incoming, sent), Some(false));
        incoming.headers.remove("webhook-timestamp");
        assert_eq!(standard(secret, &incoming, sent), Some(false));
        incoming.headers.remove("webhook-signature");
        assert_eq!(standard(secret, &incoming, sent), None);
    }

    #[test]
    fn texts_are_the_same_or_not() {
        assert!(same("a", "a") && same("", ""));
        assert!(!same("a", "b") && !same("a", "aa") && !same("a", ""));
    }
}
