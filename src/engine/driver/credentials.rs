//! From the secrets that a build names to what its attempt is given. Decrypted when the attempt is launched and not
//! before, so that what was deleted or replaced in the meantime counts.

use std::time::Duration;

use sqlx::PgPool;

use super::{Driver, Stopped};
use crate::{
    domain::{
        build::Assignment,
        failure::{Failure, FailureCode},
        secret::{Credentials, GitCredentials, Need, Purpose, SecretData},
        spec::BuildSpec,
    },
    runner::Runner,
    store::{
        self,
        secrets::{
            Stored,
            seal::{Keyring, Place, SealError},
        },
    },
};

impl<R: Runner> Driver<'_, R> {
    /// Decrypts what the attempt is to be given. The failure is how it ends, if it can't be.
    pub(super) async fn obtain_credentials(&mut self) -> Result<Result<(), Failure>, Stopped> {
        let mut backoff = Duration::from_millis(50);
        loop {
            match load(&self.context.pool, &self.context.keyring, &self.claimed.assignment).await {
                Ok(Ok(credentials)) => {
                    self.claimed.assignment.credentials = credentials;
                    return Ok(Ok(()));
                }
                // A pod whose steps have begun has what it needs, whatever became of the secrets since.
                Ok(Err(_)) if self.has_begun() => return Ok(Ok(())),
                Ok(Err(failure)) => return Ok(Err(failure)),
                Err(error) => {
                    tracing::warn!(build.id = %self.lease.attempt.build, error = ?error, "the build's secrets can't be read; trying again");
                }
            }
            self.pause(backoff).await?;
            backoff = (backoff * 2).min(Duration::from_secs(2));
        }
    }

    fn has_begun(&self) -> bool {
        self.has_run()
            || !self
                .context
                .runner
                .observe(self.lease.attempt)
                .borrow()
                .steps()
                .is_empty()
    }
}

/// The attempt's credentials, or how it fails for want of them.
async fn load(
    pool: &PgPool,
    keyring: &Keyring,
    assignment: &Assignment,
) -> Result<Result<Credentials, Failure>, store::Error> {
    let spec = &assignment.spec;
    let needs = spec.needs();
    if needs.is_empty() {
        return Ok(Ok(Credentials::default()));
    }
    let names: Vec<_> = needs.iter().map(|need| need.name).collect();
    let stored = store::secrets::named(pool, &assignment.project, &names).await?;
    Ok(assemble(keyring, spec, &needs, &stored))
}

fn assemble(
    keyring: &Keyring,
    spec: &BuildSpec,
    needs: &[Need<'_>],
    stored: &[Stored],
) -> Result<Credentials, Failure> {
    let mut credentials = Credentials::default();
    for need in needs {
        let found = stored.iter().find(|stored| stored.secret.name == *need.name);
        let data = open(keyring, spec, need, found)?;
        match (need.purpose, data) {
            (Purpose::Source, SecretData::Git(git)) => credentials.source = Some(git),
            (Purpose::Ssh, SecretData::Git(GitCredentials::Ssh(key))) => credentials.ssh = Some(key),
            (Purpose::Mount(id), SecretData::Build(value)) => {
                credentials.secrets.insert(id.clone(), value);
            }
            (Purpose::Registry(_), SecretData::Registry(login)) => {
                if credentials.registry(login.registry.as_str()).is_some() {
                    let message = format!(
                        "`registry_credentials` names two secrets for `{}`, because one was changed since: name one.",
                        login.registry
                    );
                    return Err(Failure::new(need.failure(spec), message));
                }
                credentials.registries.push(login);
            }
            (_, data) => return Err(unfit(spec, need, &data)),
        }
    }
    Ok(credentials)
}

fn open(keyring: &Keyring, spec: &BuildSpec, need: &Need<'_>, stored: Option<&Stored>) -> Result<SecretData, Failure> {
    let name = need.name;
    let Some(Stored { secret, sealed }) = stored else {
        return Err(Failure::new(
            need.failure(spec),
            format!(
                "The secret `{name}` was deleted after the build was accepted. Store it again, and retry the build."
            ),
        ));
    };
    let place = Place {
        project: &secret.project,
        name: &secret.name,
        kind: secret.kind,
    };
    let data = keyring
        .open(place, sealed)
        .map_err(|error| {
            tracing::error!(project = %secret.project, secret = %name, error = %error, "a secret can't be decrypted");
            match error {
                SealError::NoKey | SealError::UnknownKey(_) => format!(
                    "The secret `{name}` can't be decrypted, because the service lacks the key that it was encrypted with. Its operator can add the key to `secrets.previous_key_files`; or store the secret again."
                ),
                SealError::Broken => {
                    format!("The secret `{name}` can't be decrypted: what is stored isn't what was encrypted. Store it again.")
                }
            }
        })
        .and_then(|plaintext| {
            SecretData::from_plaintext(secret.kind, &plaintext)
                .map_err(|_| format!("The secret `{name}` can't be read by this version of Kiln. Store it again."))
        })
        .map_err(|message| Failure::new(FailureCode::Internal, message))?;
    if data.kind() != need.kind() || need.objection(spec, data.form()).is_some() {
        return Err(unfit(spec, need, &data));
    }
    Ok(data)
}

/// The secret was replaced by one of another kind since the request was checked.
fn unfit(spec: &BuildSpec, need: &Need<'_>, data: &SecretData) -> Failure {
    let why = need.objection(spec, data.form()).unwrap_or_else(|| {
        format!(
            "`{}` is of kind `{}` now; expected `{}`",
            need.name,
            data.kind(),
            need.kind()
        )
    });
    Failure::new(
        need.failure(spec),
        format!("A secret was changed after the build was accepted: {why}."),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::secret::{NewSecret, SecretName};

    fn spec() -> BuildSpec {
        serde_json::from_value(json!({
            "source": {"type": "git", "url": "https://git.example/app.git", "ref": null, "commit": null, "subdir": "",
                       "submodules": false, "credentials": "forge"},
            "dockerfile": "Dockerfile", "build_args": {}, "target": null, "platforms": ["linux/amd64"], "labels": {},
            "images": ["r.example/app:1"], "push": true, "registry_credentials": ["hub", "other"],
            "secrets": {"npm": "npm-token"}, "ssh": null, "builder": "buildkit",
            "resources": {"cpu": "1", "memory": "1Gi", "disk": "1Gi"},
            "timeout_seconds": 600, "priority": 0, "annotations": {},
        }))
        .expect("a specification")
    }

    fn keyring(byte: u8) -> Keyring {
        use base64::{Engine as _, prelude::BASE64_STANDARD};
        Keyring::parse([BASE64_STANDARD.encode([byte; 32]).as_str()]).expect("a key")
    }

    fn stored(name: &str, document: &serde_json::Value) -> Stored {
        let data = NewSecret::read(document).expect("a secret").data;
        let (project, name): (_, SecretName) = ("default".parse().expect("a name"), name.parse().expect("a name"));
        let place = Place {
            project: &project,
            name: &name,
            kind: data.kind(),
        };
        let sealed = keyring(1).seal([0; 12], place, &data.to_plaintext()).expect("seals");
        Stored {
            sealed,
            secret: store::secrets::Secret {
                kind: data.kind(),
                form: data.form(),
                registry: data.registry().cloned(),
                created_at: chrono::DateTime::UNIX_EPOCH,
                updated_at: chrono::DateTime::UNIX_EPOCH,
                project,
                name,
            },
        }
    }

    fn all() -> Vec<Stored> {
        let registry = |host| json!({"kind": "registry", "data": {"registry": host, "username": "u", "password": "p"}});
        vec![
            stored("forge", &json!({"kind": "git", "data": {"token": "t0k3n"}})),
            stored("hub", &registry("docker.io")),
            stored("other", &registry("r.example")),
            stored("npm-token", &json!({"kind": "build", "data": {"value": "v"}})),
        ]
    }

    fn outcome(keyring: &Keyring, stored: &[Stored]) -> Result<Credentials, Failure> {
        let spec = spec();
        assemble(keyring, &spec, &spec.needs(), stored)
    }

    #[test]
    fn everything_that_is_named_is_given() {
        let credentials = outcome(&keyring(1), &all()).expect("complete");
        assert!(matches!(&credentials.source, Some(GitCredentials::Token(token)) if token.expose() == "t0k3n"));
        assert!(credentials.registry("docker.io").is_some() && credentials.registry("r.example").is_some());
        assert_eq!(credentials.secrets.len(), 1);
    }

    #[test]
    fn what_is_missing_or_changed_says_so() {
        let replaced = |name: &str, document: serde_json::Value| {
            let mut all = all();
            all.retain(|stored| stored.secret.name.as_str() != name);
            if !document.is_null() {
                all.push(stored(name, &document));
            }
            all
        };
        let key = json!({"kind": "git", "data": {"ssh_private_key":
            "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n",
            "known_hosts": "h ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG3z2EEepuhYoHOEcgrOCUiYQactSvJshIIDeGc7ROvs"}});
        let hub = json!({"kind": "registry", "data": {"registry": "docker.io", "username": "u", "password": "p"}});
        for (name, document, code, words) in [
            ("forge", json!(null), FailureCode::SourceFailed, "`forge` was deleted"),
            ("forge", key, FailureCode::SourceFailed, "SSH key"),
            ("other", json!(null), FailureCode::PushFailed, "`other` was deleted"),
            ("other", hub, FailureCode::PushFailed, "two secrets for `docker.io`"),
            (
                "npm-token",
                json!(null),
                FailureCode::BuildFailed,
                "`npm-token` was deleted",
            ),
            (
                "npm-token",
                json!({"kind": "git", "data": {"token": "t"}}),
                FailureCode::BuildFailed,
                "expected `build`",
            ),
        ] {
            let failure = outcome(&keyring(1), &replaced(name, document)).expect_err("incomplete");
            assert_eq!(failure.code, code, "{}", failure.message);
            assert!(failure.message.contains(words), "{}", failure.message);
        }
        let failure = outcome(&keyring(2), &all()).expect_err("no key");
        assert_eq!(failure.code, FailureCode::Internal);
        assert!(failure.message.contains("previous_key_files"), "{}", failure.message);
    }
}
