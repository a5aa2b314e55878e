//! `PUT /v1/projects/{project}/secrets/{secret}`.

use axum::{Json, extract::State, http::StatusCode};
use utoipa::ToSchema;

use super::SecretView;
use crate::{
    domain::secret::NewSecret,
    http::{
        auth::ManagedProject,
        body::JsonBody,
        error::{ApiError, Missing},
        path::NewSecretPath,
        problem::Problem,
        state::App,
    },
    store::secrets::{self, seal::Place},
};

/// A secret to be stored.
#[derive(ToSchema)]
#[serde(tag = "kind", content = "data", rename_all = "snake_case")]
#[expect(dead_code, reason = "only described, never made")]
enum PutSecret {
    /// For reading sources: a git repository, or an archive behind a login.
    Git(GitData),
    /// For pulling from and pushing to a registry.
    Registry(RegistryData),
    /// For `RUN --mount=type=secret`.
    Build(BuildData),
}

/// One way to log in.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described, never made")]
enum GitData {
    /// For http and https.
    Password {
        /// The user; one line, at most 255 bytes.
        username: String,
        /// The password; one line, at most 8 KiB.
        password: String,
    },
    /// For http and https.
    Token {
        /// A token of the forge; one line, at most 8 KiB.
        token: String,
    },
    /// For ssh.
    Ssh {
        /// A private key file of OpenSSH without a passphrase; at most 16 KiB.
        ssh_private_key: String,
        /// The server's keys, as lines of `known_hosts`; at most 32 KiB.
        known_hosts: String,
    },
}

/// A login.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
struct RegistryData {
    /// Host with its port, as in image references; `docker.io` for Docker Hub.
    #[schema(example = "registry.example:5000")]
    registry: String,
    /// The user; one line without a colon, at most 255 bytes.
    username: String,
    /// The password or token; one line, at most 8 KiB.
    password: String,
}

/// A value of 1 byte to 64 KiB.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described, never made")]
enum BuildData {
    /// As text.
    Text {
        /// The value.
        value: String,
    },
    /// As anything.
    Bytes {
        /// The value in standard base64.
        value_base64: String,
    },
}

/// Store a secret, in place of the one of that name if there is one. Needs the scope `project:admin`.
///
/// What it holds is encrypted and can't be read back. Builds get what it holds when they are launched.
#[utoipa::path(
    put, path = "/v1/projects/{project}/secrets/{secret}", tag = "projects", operation_id = "putSecret",
    params(
        ("project" = String, Path, description = "The project"),
        ("secret" = String, Path, description = "The secret's name: lower-case letters, digits, `-`, `_` and `.`, at most 63"),
    ),
    request_body = PutSecret,
    responses(
        (status = 201, description = "It is stored; there was none of that name", body = SecretView),
        (status = 200, description = "It is stored in place of the old one", body = SecretView),
        (status = 404, description = "No such project for this token", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are invalid, or the name is (`/name`)", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "This installation has no key to encrypt secrets with", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn put(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    NewSecretPath(name): NewSecretPath,
    JsonBody(document): JsonBody,
) -> Result<(StatusCode, Json<SecretView>), ApiError> {
    let (name, data) = match (name, NewSecret::read(&document)) {
        (Ok(name), Ok(NewSecret { data })) => (name, data),
        (name, read) => {
            let fields = read.err().unwrap_or_default();
            return Err(ApiError::InvalidBody(name.err().into_iter().chain(fields).collect()));
        }
    };
    let place = Place {
        project: &project,
        name: &name,
        kind: data.kind(),
    };
    let sealed = app
        .keyring
        .seal(app.random.bytes(), place, &data.to_plaintext())
        .map_err(ApiError::Seal)?;
    let (secret, created) = secrets::put(&app.pool, &project, &name, &data, &sealed)
        .await?
        .ok_or(ApiError::NotFound(Missing::Project))?;
    tracing::info!(project = %project, secret = %name, kind = %data.kind(), "a secret was stored");
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(secret.into())))
}
