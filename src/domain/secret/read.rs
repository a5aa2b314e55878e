//! From the JSON of a secret to what it holds. The same reading serves requests and what was stored, so nothing gets
//! past it. No message repeats a value.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Serialize;
use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    GitCredentials, RegistryCredentials, RegistryHost, SecretBytes, SecretData, SecretKind, SecretText, SshKey,
    material::{check_known_hosts, check_private_key},
};
use crate::domain::spec::{
    Invalid,
    reader::{Errors, Field, FieldError, Object, Reported},
};

/// How large secrets may be, in bytes. All that a build can ask for has to fit into one Kubernetes Secret, which holds
/// 1 MiB.
#[derive(Debug)]
pub struct Limits;

impl Limits {
    /// A user.
    pub const USERNAME: usize = 255;
    /// A password or token. Those of cloud registries are a few thousand bytes long.
    pub const PASSWORD: usize = 8 * 1024;
    /// A private SSH key.
    pub const PRIVATE_KEY: usize = 16 * 1024;
    /// The host keys to trust.
    pub const KNOWN_HOSTS: usize = 32 * 1024;
    /// The value of a build secret.
    pub const VALUE: usize = 64 * 1024;
    /// Registries that a build has credentials for.
    pub const REGISTRIES: usize = 8;
    /// Secrets that a Dockerfile mounts.
    pub const MOUNTS: usize = 12;
}

/// A secret as a caller gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSecret {
    /// What it holds.
    pub data: SecretData,
}

impl NewSecret {
    /// Reads the body of `PUT /v1/projects/{project}/secrets/{name}`. The error names every invalid field.
    pub fn read(document: &Value) -> Result<Self, Vec<FieldError>> {
        const KINDS: [(&str, SecretKind); 3] = [
            (SecretKind::Git.as_str(), SecretKind::Git),
            (SecretKind::Registry.as_str(), SecretKind::Registry),
            (SecretKind::Build.as_str(), SecretKind::Build),
        ];
        let errors = Errors::default();
        let data = Object::document(document, &errors).and_then(|root| {
            let kind = root.field("kind");
            let field = root.field("data");
            let data = match kind.one_of(&KINDS) {
                Ok(Some(kind)) => data(&field, kind),
                Ok(None) => Err(kind.report("required: expected `git`, `registry` or `build`")),
                Err(reported) => Err(reported),
            };
            root.finish();
            data
        });
        errors.finish(data).map(|data| Self { data })
    }
}

impl SecretData {
    /// The data for storing; to be encrypted.
    pub fn to_plaintext(&self) -> Zeroizing<Vec<u8>> {
        #[derive(Default, Serialize)]
        struct Plain<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            registry: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            username: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            password: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            token: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            ssh_private_key: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            known_hosts: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            value_base64: Option<&'a str>,
        }
        let encoded;
        let plain = match self {
            Self::Git(GitCredentials::Password { username, password }) => Plain {
                username: Some(username.expose()),
                password: Some(password.expose()),
                ..Plain::default()
            },
            Self::Git(GitCredentials::Token(token)) => Plain {
                token: Some(token.expose()),
                ..Plain::default()
            },
            Self::Git(GitCredentials::Ssh(key)) => Plain {
                ssh_private_key: Some(key.private_key.expose()),
                known_hosts: Some(&key.known_hosts),
                ..Plain::default()
            },
            Self::Registry(credentials) => Plain {
                registry: Some(credentials.registry.as_str()),
                username: Some(credentials.username.expose()),
                password: Some(credentials.password.expose()),
                ..Plain::default()
            },
            Self::Build(value) => {
                encoded = Zeroizing::new(BASE64_STANDARD.encode(value.expose()));
                Plain {
                    value_base64: Some(&encoded),
                    ..Plain::default()
                }
            }
        };
        // Strings always serialise.
        Zeroizing::new(serde_json::to_vec(&plain).unwrap_or_default())
    }

    /// Reads what [`Self::to_plaintext`] wrote. The error says nothing about the content.
    pub fn from_plaintext(kind: SecretKind, plaintext: &[u8]) -> Result<Self, Invalid> {
        let unreadable = || Invalid::new(format!("what was decrypted isn't a secret of kind {kind}"));
        let document: Value = serde_json::from_slice(plaintext).map_err(|_| unreadable())?;
        let errors = Errors::default();
        let data = self::data(&Field::document(&document, &errors), kind);
        errors.finish(data).map_err(|_| unreadable())
    }
}

fn data(field: &Field<'_>, kind: SecretKind) -> Result<SecretData, Reported> {
    if field.value().is_none() {
        return Err(field.report(match kind {
            SecretKind::Git => GIT_FORMS,
            SecretKind::Registry => "required: expected `registry`, `username` and `password`",
            SecretKind::Build => "required: expected `value`, or `value_base64` for what isn't text",
        }));
    }
    let object = field.object()?;
    let data = match kind {
        SecretKind::Git => git(field, &object).map(SecretData::Git),
        SecretKind::Registry => registry(&object).map(SecretData::Registry),
        SecretKind::Build => build(field, &object).map(SecretData::Build),
    };
    object.finish();
    data
}

const GIT_FORMS: &str =
    "required: expected `username` and `password`, or `token`, or `ssh_private_key` and `known_hosts`";

fn git(field: &Field<'_>, object: &Object<'_>) -> Result<GitCredentials, Reported> {
    let [username, password, token, key, hosts] =
        ["username", "password", "token", "ssh_private_key", "known_hosts"].map(|name| object.field(name));
    let given = |field: &Field<'_>| field.value().is_some();
    let by_password = given(&username) || given(&password);
    let by_key = given(&key) || given(&hosts);
    match (by_password, given(&token), by_key) {
        (true, false, false) => {
            let (username, password) = (self::username(&username), self::password(&password));
            Ok(GitCredentials::Password {
                username: username?,
                password: password?,
            })
        }
        (false, true, false) => self::password(&token).map(GitCredentials::Token),
        (false, false, true) => {
            let private_key = bounded(&key, Limits::PRIVATE_KEY).and_then(|text| {
                check_private_key(text)
                    .map_err(|Invalid(detail)| key.report(detail))
                    .map(SecretText::new)
            });
            let known_hosts = bounded(&hosts, Limits::KNOWN_HOSTS).and_then(|text| {
                check_known_hosts(text).map_err(|Invalid(detail)| {
                    hosts.report(format!("{detail}; `ssh-keyscan <host>` prints such lines, to be compared with what the server's operator publishes"))
                })
            });
            Ok(GitCredentials::Ssh(SshKey {
                private_key: private_key?,
                known_hosts: known_hosts?,
            }))
        }
        (false, false, false) => Err(field.report(GIT_FORMS)),
        _ => Err(field.report(
            "expected one way to log in: `username` and `password`, or `token`, or `ssh_private_key` and `known_hosts`",
        )),
    }
}

fn registry(object: &Object<'_>) -> Result<RegistryCredentials, Reported> {
    let registry = object.field("registry").required::<RegistryHost>();
    let username_field = object.field("username");
    let username = username(&username_field).and_then(|username| {
        if username.expose().contains(':') {
            Err(username_field.report("expected a user without a colon, which ends the user in a registry's login"))
        } else {
            Ok(username)
        }
    });
    let password = password(&object.field("password"));
    Ok(RegistryCredentials {
        registry: registry?,
        username: username?,
        password: password?,
    })
}

fn build(field: &Field<'_>, object: &Object<'_>) -> Result<SecretBytes, Reported> {
    let text = object.field("value");
    let encoded = object.field("value_base64");
    let bytes = match (text.value().is_some(), encoded.value().is_some()) {
        (true, false) => SecretBytes::new(text.required_text()?),
        (false, true) => SecretBytes::new(
            BASE64_STANDARD
                .decode(encoded.required_text()?)
                .map_err(|_| encoded.report("expected standard base64 with padding, without line breaks"))?,
        ),
        (true, true) => return Err(field.report("expected `value` or `value_base64`, not both")),
        (false, false) => {
            return Err(field.report("required: expected `value`, or `value_base64` for what isn't text"));
        }
    };
    if (1..=Limits::VALUE).contains(&bytes.expose().len()) {
        Ok(bytes)
    } else {
        Err(field.report(format!("expected a value of 1 to {} bytes", Limits::VALUE)))
    }
}

fn username(field: &Field<'_>) -> Result<SecretText, Reported> {
    one_line(field, Limits::USERNAME)
}

fn password(field: &Field<'_>) -> Result<SecretText, Reported> {
    one_line(field, Limits::PASSWORD)
}

/// Text that fits into a header, and into the lines of git's credential protocol.
fn one_line(field: &Field<'_>, max: usize) -> Result<SecretText, Reported> {
    let text = bounded(field, max)?;
    if text.chars().any(char::is_control) {
        return Err(field.report("expected one line: no line breaks and control characters, not at the end either"));
    }
    Ok(SecretText::new(text))
}

fn bounded<'a>(field: &Field<'a>, max: usize) -> Result<&'a str, Reported> {
    let text = field.required_text()?;
    if (1..=max).contains(&text.len()) {
        Ok(text)
    } else {
        Err(field.report(format!("expected 1 to {max} bytes")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::domain::secret::material::tests::{KNOWN_HOSTS, PRIVATE_KEY};

    fn pointers(document: &Value) -> Vec<String> {
        let errors = NewSecret::read(document).expect_err("refused");
        errors.into_iter().map(|error| error.pointer).collect()
    }

    #[test]
    fn each_kind_has_its_fields() {
        for (document, form) in [
            (
                json!({"kind": "git", "data": {"username": "u", "password": "p"}}),
                "password",
            ),
            (json!({"kind": "git", "data": {"token": "t"}}), "token"),
            (
                json!({"kind": "git", "data": {"ssh_private_key": PRIVATE_KEY, "known_hosts": KNOWN_HOSTS}}),
                "ssh_key",
            ),
            (
                json!({"kind": "registry", "data": {"registry": "r.example", "username": "u", "password": "p"}}),
                "password",
            ),
            (json!({"kind": "build", "data": {"value": "a\nb"}}), "value"),
            (json!({"kind": "build", "data": {"value_base64": "AAE="}}), "value"),
        ] {
            let secret = NewSecret::read(&document).expect("accepted");
            assert_eq!(document["kind"], secret.data.kind().as_str());
            assert_eq!(secret.data.form().as_str(), form);
        }
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        for (document, expected) in [
            (json!({}), vec!["/kind"]),
            (
                json!({"kind": "gti", "data": {"token": "t"}, "x": 1}),
                vec!["/kind", "/x"],
            ),
            (json!({"kind": "git"}), vec!["/data"]),
            (json!({"kind": "git", "data": {}}), vec!["/data"]),
            (
                json!({"kind": "git", "data": {"token": "t", "password": "p"}}),
                vec!["/data"],
            ),
            (
                json!({"kind": "git", "data": {"password": "p\n", "user": "u"}}),
                vec!["/data/username", "/data/password", "/data/user"],
            ),
            (
                json!({"kind": "git", "data": {"ssh_private_key": "ssh-ed25519 AAAA me", "known_hosts": "x"}}),
                vec!["/data/ssh_private_key", "/data/known_hosts"],
            ),
            (
                json!({"kind": "git", "data": {"ssh_private_key": PRIVATE_KEY}}),
                vec!["/data/known_hosts"],
            ),
            (
                json!({"kind": "registry", "data": {"registry": "https://r.example", "username": "a:b", "password": ""}}),
                vec!["/data/registry", "/data/username", "/data/password"],
            ),
            (
                json!({"kind": "registry", "data": {"token": "t"}}),
                vec!["/data/registry", "/data/username", "/data/password", "/data/token"],
            ),
            (
                json!({"kind": "build", "data": {"value": "a", "value_base64": "YQ=="}}),
                vec!["/data"],
            ),
            (json!({"kind": "build", "data": {"value": ""}}), vec!["/data"]),
            (
                json!({"kind": "build", "data": {"value": "x".repeat(Limits::VALUE + 1)}}),
                vec!["/data"],
            ),
            (
                json!({"kind": "build", "data": {"value_base64": "no base64"}}),
                vec!["/data/value_base64"],
            ),
        ] {
            assert_eq!(pointers(&document), expected, "{document}");
        }
    }

    #[test]
    fn no_message_repeats_a_value() {
        let value = "hunter2hunter2";
        for document in [
            json!({"kind": "git", "data": {"username": format!("{value}\n"), "password": format!("{value}\0")}}),
            json!({"kind": "git", "data": {"token": [value]}}),
            json!({"kind": "git", "data": {"ssh_private_key": value, "known_hosts": value}}),
            json!({"kind": "registry", "data": {"registry": "r.example", "username": format!("{value}:"), "password": 1}}),
            json!({"kind": "build", "data": {"value_base64": format!("{value}!")}}),
        ] {
            let errors = NewSecret::read(&document).expect_err("refused");
            assert!(!format!("{errors:?}").contains(value), "{errors:?}");
        }
    }

    fn any_data() -> impl Strategy<Value = SecretData> {
        let line = || "[^\\p{C}]{1,20}".prop_map(SecretText::new);
        let ssh = Just(SecretData::Git(GitCredentials::Ssh(SshKey {
            private_key: SecretText::new(PRIVATE_KEY),
            known_hosts: KNOWN_HOSTS.to_owned(),
        })));
        prop_oneof![
            (line(), line())
                .prop_map(|(username, password)| SecretData::Git(GitCredentials::Password { username, password })),
            line().prop_map(|token| SecretData::Git(GitCredentials::Token(token))),
            ssh,
            ("[^\\p{C}:]{1,20}", line()).prop_map(|(username, password)| SecretData::Registry(RegistryCredentials {
                registry: "r.example:5000".parse().expect("a host"),
                username: SecretText::new(username),
                password,
            })),
            proptest::collection::vec(any::<u8>(), 1..64).prop_map(|bytes| SecretData::Build(SecretBytes::new(bytes))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_stored_reads_back(data in any_data()) {
            let plaintext = data.to_plaintext();
            prop_assert_eq!(SecretData::from_plaintext(data.kind(), &plaintext), Ok(data.clone()));
            for other in SecretKind::ALL.into_iter().filter(|kind| *kind != data.kind()) {
                // A password for git has the fields of no other kind, and so on.
                prop_assert!(SecretData::from_plaintext(other, &plaintext).is_err());
            }
        }
    }
}
