//! `/v1/projects/{project}/secrets`. What a secret holds goes in and never comes out.

pub(in crate::http) mod delete;
pub(in crate::http) mod get;
pub(in crate::http) mod list;
pub(in crate::http) mod put;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    domain::{
        project::ProjectName,
        secret::{SecretForm, SecretKind, SecretName},
    },
    store,
};

/// A secret, without what it holds.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Secret)]
pub(in crate::http) struct SecretView {
    /// Its name.
    name: SecretName,
    /// The project it belongs to.
    project: ProjectName,
    /// What it is for.
    kind: SecretKind,
    /// What its data consist of.
    holds: SecretForm,
    /// The registry that it is for; null unless `kind` is `registry`.
    #[schema(example = "registry.example:5000")]
    registry: Option<String>,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When its data were last given.
    updated_at: DateTime<Utc>,
}

impl From<store::secrets::Secret> for SecretView {
    fn from(secret: store::secrets::Secret) -> Self {
        Self {
            name: secret.name,
            project: secret.project,
            kind: secret.kind,
            holds: secret.form,
            registry: secret.registry.map(|registry| registry.to_string()),
            created_at: secret.created_at,
            updated_at: secret.updated_at,
        }
    }
}
