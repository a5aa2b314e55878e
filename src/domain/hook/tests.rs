//! Every sender by payloads after its documentation, and all of them by payloads that nobody would send.

use chrono::TimeDelta;
use hmac::{Hmac, KeyInit as _, Mac as _};
use proptest::prelude::*;
use sha2::Sha256;

use super::*;

use std::{fs, path::Path};

use serde_json::Value;

const NOW: i64 = 1_576_754_900;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(NOW, 0).expect("a time")
}

/// A delivery after a sender's documentation, and what has to be read of it.
struct Recorded {
    name: String,
    forge: Forge,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    reads: Value,
}

impl Recorded {
    fn all() -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hooks");
        let mut all = Vec::new();
        for forge in Forge::ALL {
            let folder = root.join(forge.as_str());
            for entry in fs::read_dir(&folder).expect("a folder for each sender") {
                let path = entry.expect("an entry").path();
                let text = fs::read(&path).expect("reads");
                let mut file: Value = serde_json::from_slice(&text).expect("JSON");
                assert!(file["source"].is_string(), "{}", path.display());
                all.push(Self {
                    name: path.display().to_string(),
                    forge,
                    headers: serde_json::from_value(file["headers"].take()).expect("headers"),
                    body: serde_json::to_vec(&file["body"]).expect("serialises"),
                    reads: file["reads"].take(),
                });
            }
        }
        all
    }

    fn incoming(&self) -> Incoming<'_> {
        Incoming {
            headers: self.headers.clone(),
            token: None,
            body: &self.body,
        }
    }
}

#[test]
fn what_the_documentation_shows_is_read() {
    let mut kinds = std::collections::BTreeSet::new();
    for recorded in Recorded::all() {
        let (name, incoming) = (&recorded.name, recorded.incoming());
        let reading = recorded.forge.read(&incoming);
        if recorded.reads["malformed"] == true {
            assert!(reading.is_err(), "{name}: {reading:?}");
            continue;
        }
        match reading.unwrap_or_else(|error| panic!("{name}: {error}")) {
            Reading::Events(events) => {
                let events_json = serde_json::to_value(&events).expect("serialises");
                assert_eq!(events_json, recorded.reads["events"], "{name}");
                for event in events {
                    assert!(recorded.forge.events().contains(&event.kind), "{name}");
                    kinds.insert((recorded.forge, event.kind));
                }
            }
            Reading::Nothing(reason) => assert_eq!(reason, recorded.reads["nothing"], "{name}"),
        }
    }
    // Everything that a sender may tell of is shown.
    for forge in Forge::ALL.into_iter().filter(|forge| *forge != Forge::Generic) {
        for kind in forge.events().iter().filter(|kind| **kind != EventKind::Manual) {
            assert!(kinds.contains(&(forge, *kind)), "{forge}: {kind}");
        }
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

/// The headers by which a sender says who it is.
fn signed(forge: Forge, secret: &str, body: &[u8]) -> Vec<(&'static str, String)> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};

    let hex = hex::encode(hmac(secret.as_bytes(), &[body]));
    match forge {
        Forge::Github => vec![("x-hub-signature-256", format!("sha256={hex}"))],
        Forge::Gitea => vec![("x-gitea-signature", hex)],
        Forge::BitbucketCloud | Forge::BitbucketServer => vec![("x-hub-signature", format!("sha256={hex}"))],
        Forge::Gitlab | Forge::Generic => {
            let timestamp = NOW.to_string();
            let key = secret::key(secret);
            let tag = hmac(&key, &[b"msg_1.", timestamp.as_bytes(), b".", body]);
            vec![
                ("webhook-id", "msg_1".to_owned()),
                ("webhook-signature", format!("v1,{}", BASE64_STANDARD.encode(tag))),
                ("webhook-timestamp", timestamp),
            ]
        }
        Forge::Gitee => {
            let timestamp = (NOW * 1000).to_string();
            let tag = hmac(secret.as_bytes(), &[timestamp.as_bytes(), b"\n", secret.as_bytes()]);
            vec![
                ("x-gitee-token", BASE64_STANDARD.encode(tag)),
                ("x-gitee-timestamp", timestamp),
            ]
        }
        Forge::Registry => vec![("authorization", format!("Bearer {secret}"))],
    }
}

fn incoming<'b>(headers: &[(&'static str, String)], body: &'b [u8]) -> Incoming<'b> {
    Incoming {
        headers: headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
        token: None,
        body,
    }
}

#[test]
fn old_and_new_secrets_are_both_good() {
    let secrets = [1, 2, 3].map(|byte| HookSecret::from_random([byte; 32]));
    for forge in Forge::ALL {
        let verify = |secrets: &[HookSecret], by: &HookSecret| {
            let headers = signed(forge, by.expose(), b"{}");
            forge.verify(secrets, &incoming(&headers, b"{}"), now())
        };
        assert!(verify(&secrets[..2], &secrets[0]), "{forge}");
        assert!(verify(&secrets[..2], &secrets[1]), "{forge}");
        assert!(!verify(&secrets[..2], &secrets[2]), "{forge}");
        assert!(!verify(&[], &secrets[0]), "{forge}");
        assert!(!forge.verify(&secrets, &Incoming::default(), now()), "{forge}");
    }
}

#[test]
fn senders_that_do_not_sign_send_what_they_know() {
    let secrets = [HookSecret::from_random([250; 32])];
    let secret = secrets[0].expose();
    let with = |name: &'static str, value: &str| incoming(&[(name, value.to_owned())], b"");
    assert!(Forge::Gitlab.verify(&secrets, &with("x-gitlab-token", secret), now()));
    assert!(!Forge::Gitlab.verify(&secrets, &with("x-gitlab-token", &secret[1..]), now()));
    assert!(Forge::Registry.verify(&secrets, &with("authorization", secret), now()));
    let address = Incoming {
        token: Some(secret.replace('+', " ")),
        ..Incoming::default()
    };
    assert!(secret.contains('+') && Forge::Registry.verify(&secrets, &address, now()));
    assert!(!Forge::Github.verify(&secrets, &address, now()));

    let gitee = |token: &str, millis: i64| {
        let headers = [
            ("x-gitee-token", token.to_owned()),
            ("x-gitee-timestamp", millis.to_string()),
        ];
        Forge::Gitee.verify(&secrets, &incoming(&headers, b""), now())
    };
    assert!(gitee(secret, NOW * 1000));
    assert!(!gitee(secret, NOW * 1000 + 3_600_001) && !gitee(secret, 0) && !gitee("", NOW * 1000));
    let escaped = signed(Forge::Gitee, secret, b"")[0]
        .1
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D");
    assert!(gitee(&escaped, NOW * 1000));
}

#[test]
fn a_signed_timestamp_ends() {
    let secrets = [HookSecret::from_random([1; 32])];
    for forge in [Forge::Gitlab, Forge::Generic, Forge::Gitee] {
        let headers = signed(forge, secrets[0].expose(), b"{}");
        let at = |later: TimeDelta| forge.verify(&secrets, &incoming(&headers, b"{}"), now() + later);
        assert!(
            at(TimeDelta::minutes(4)) && !at(TimeDelta::hours(2)) && !at(-TimeDelta::hours(2)),
            "{forge}"
        );
    }
}

#[test]
fn a_delivery_has_the_senders_id_if_it_is_plain() {
    let github = |id: &str| Forge::Github.delivery_id(&incoming(&[("x-github-delivery", id.to_owned())], b""));
    assert_eq!(github("a-1").as_deref(), Some("a-1"));
    for bad in ["", "a b", "é", &"x".repeat(201)] {
        assert_eq!(github(bad), None);
    }
}

#[test]
fn the_same_event_has_the_same_key() {
    let mut event = Event::new(EventKind::Push, "team/app".to_owned());
    assert_eq!(event.semantic_key(), None);
    event.commit = "3f786850e387550fdab836ed7e6dc881de23001b".parse().ok();
    event.previous = Some("a".to_owned());
    let key = event.semantic_key();
    assert!(key.is_some());
    let mut again = event.clone();
    again.files = Some(vec!["x".to_owned()]);
    assert_eq!(again.semantic_key(), key);
    // Pushed there, away, and there again: not the same.
    again.previous = Some("b".to_owned());
    assert_ne!(again.semantic_key(), key);
    event.kind = EventKind::Manual;
    assert_eq!(event.semantic_key(), None);
}

fn sender() -> impl Strategy<Value = Forge> {
    (0..Forge::ALL.len()).prop_map(|index| Forge::ALL[index])
}

/// A recorded payload with one value in it replaced by something else.
fn bent() -> impl Strategy<Value = (usize, usize, usize)> {
    (any::<usize>(), any::<usize>(), 0..7usize)
}

fn places<'v>(value: &'v mut Value, found: &mut Vec<&'v mut Value>) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|field| places(field, found)),
        Value::Array(elements) => elements.iter_mut().for_each(|element| places(element, found)),
        other => found.push(other),
    }
}

proptest! {
    #[test]
    fn a_changed_byte_never_verifies(
        forge in sender(), key: [u8; 32], body in proptest::collection::vec(any::<u8>(), 1..200),
        at: usize, header: usize,
        // Not the bit that tells capitals from small letters, which are the same as hexadecimal digits.
        bit in 0..5u8,
    ) {
        let secrets = [HookSecret::from_random(key)];
        let headers = signed(forge, secrets[0].expose(), &body);
        prop_assert!(forge.verify(&secrets, &incoming(&headers, &body), now()));

        // Of what says who it is.
        let mut bent = headers.clone();
        let chosen = header % bent.len();
        let mut bytes = bent[chosen].1.clone().into_bytes();
        let place = at % bytes.len();
        bytes[place] ^= 1 << bit;
        bent[chosen].1 = String::from_utf8(bytes).expect("ASCII");
        prop_assert!(!forge.verify(&secrets, &incoming(&bent, &body), now()), "{:?}", bent);

        // Of the body, where the sender signs it.
        if !matches!(forge, Forge::Gitee | Forge::Registry) {
            let mut body = body.clone();
            let place = at % body.len();
            body[place] ^= 1 << bit;
            prop_assert!(!forge.verify(&secrets, &incoming(&headers, &body), now()));
        }
    }

    #[test]
    fn no_bytes_make_the_parsers_panic(
        forge in sender(), body in proptest::collection::vec(any::<u8>(), 0..300),
        names in proptest::collection::vec("x-(github|gitea|gitlab)-event|x-event-key|content-type|x-gitee-(token|timestamp)|webhook-(id|timestamp|signature)", 0..5),
        values in proptest::collection::vec("(push|pull_request|release|repo:push|repo:refs_changed|pr:opened|\\PC{0,20})", 5),
    ) {
        let incoming = Incoming {
            headers: names.into_iter().zip(values).collect(),
            token: None,
            body: &body,
        };
        let _ = forge.read(&incoming);
        let _ = forge.delivery_id(&incoming);
        prop_assert!(!forge.verify(&[HookSecret::from_random([7; 32])], &incoming, now()));
    }

    #[test]
    fn no_odd_value_makes_the_parsers_panic((which, place, kind) in bent()) {
        let mut all = Recorded::all();
        let index = which % all.len();
        let recorded = &mut all[index];
        let mut body: Value = serde_json::from_slice(&recorded.body).expect("JSON");
        let mut found = Vec::new();
        places(&mut body, &mut found);
        let count = found.len();
        *found[place % count] = [
            Value::Null, true.into(), (-1).into(), "".into(), "\0".into(), Value::Array(Vec::new()), "é".repeat(9000).into(),
        ][kind].clone();
        recorded.body = serde_json::to_vec(&body).expect("serialises");
        if let Ok(Reading::Events(events)) = recorded.forge.read(&recorded.incoming()) {
            let text = serde_json::to_string(&events).expect("serialises");
            // Postgres takes no NUL.
            prop_assert!(!text.contains("\\u0000"), "{}", text);
            for event in events {
                let _ = event.semantic_key();
            }
        }
    }
}
