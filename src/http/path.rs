//! What paths name, checked before anything else sees it. What can't be a name isn't there: 404; where it is about to
//! be made, it is refused like a field: 422.

use std::str::FromStr;

use axum::{
    RequestPartsExt as _,
    extract::{FromRequestParts, RawPathParams},
    http::request::Parts,
};
use uuid::Uuid;

use super::error::{ApiError, Missing};
use crate::domain::{
    hook::HookId,
    id::{AttemptId, BuildId, UploadId},
    node::NodeName,
    project::ProjectName,
    secret::SecretName,
    spec::{Invalid, reader::FieldError},
};

async fn parameter<T: FromStr>(parts: &mut Parts, name: &str, missing: Missing) -> Result<T, ApiError> {
    let parameters: RawPathParams = parts.extract().await.map_err(|_| ApiError::NotFound(missing))?;
    parameters
        .iter()
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.parse().ok())
        .ok_or(ApiError::NotFound(missing))
}

/// The build named by `{id}`.
pub(super) struct BuildPath(pub(super) BuildId);

impl<S: Send + Sync> FromRequestParts<S> for BuildPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parameter(parts, "id", Missing::Build).await.map(Self)
    }
}

/// The project named by `{project}`.
pub(super) struct ProjectPath(pub(super) ProjectName);

impl<S: Send + Sync> FromRequestParts<S> for ProjectPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parameter(parts, "project", Missing::Project).await.map(Self)
    }
}

/// The upload named by `{id}`.
pub(super) struct UploadPath(pub(super) UploadId);

impl<S: Send + Sync> FromRequestParts<S> for UploadPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parameter(parts, "id", Missing::Upload).await.map(Self)
    }
}

/// The attempt named by `{attempt}`.
pub(super) struct AttemptPath(pub(super) AttemptId);

impl<S: Send + Sync> FromRequestParts<S> for AttemptPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parameter(parts, "attempt", Missing::Route).await.map(Self)
    }
}

/// The token named by `{token}`.
pub(super) struct TokenPath(pub(super) Uuid);

impl<S: Send + Sync> FromRequestParts<S> for TokenPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parameter(parts, "token", Missing::Token).await.map(Self)
    }
}

/// The hook named by `{hook}`.
pub(super) struct HookPath(pub(super) HookId);

impl<S: Send + Sync> FromRequestParts<S> for HookPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let id = parameter(parts, "hook", Missing::Hook).await?;
        Ok(Self(HookId(id)))
    }
}

/// The delivery named by `{delivery}`.
pub(super) struct DeliveryPath(pub(super) Uuid);

impl<S: Send + Sync> FromRequestParts<S> for DeliveryPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parameter(parts, "delivery", Missing::Delivery).await.map(Self)
    }
}

/// The secret named by `{secret}`.
pub(super) struct SecretPath(pub(super) SecretName);

impl<S: Send + Sync> FromRequestParts<S> for SecretPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parameter(parts, "secret", Missing::Secret).await.map(Self)
    }
}

/// The node named by `{node}`.
pub(super) struct NodePath(pub(super) NodeName);

impl<S: Send + Sync> FromRequestParts<S> for NodePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parameter(parts, "node", Missing::Node).await.map(Self)
    }
}

/// The name that `{secret}` gives to a secret about to be stored, or what is wrong with it.
pub(super) struct NewSecretPath(pub(super) Result<SecretName, FieldError>);

impl<S: Send + Sync> FromRequestParts<S> for NewSecretPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let text: String = parameter(parts, "secret", Missing::Secret).await?;
        Ok(Self(text.parse().map_err(|invalid: Invalid| FieldError {
            pointer: "/name".to_owned(),
            detail: format!("the secret's name, in the path: {invalid}"),
        })))
    }
}
