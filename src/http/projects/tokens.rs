//! `/v1/projects/{project}/tokens`.

pub(in crate::http) mod create;
pub(in crate::http) mod delete;
pub(in crate::http) mod list;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    domain::project::{ProjectName, Scope},
    store,
};

/// A token, without what makes it work.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Token)]
struct TokenView {
    /// Its id, to delete it by.
    id: Uuid,
    /// The project it belongs to.
    project: ProjectName,
    /// What its maker called it.
    name: String,
    /// What it allows.
    scopes: Vec<Scope>,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it stops working; null for never.
    expires_at: Option<DateTime<Utc>>,
}

impl From<store::tokens::Token> for TokenView {
    fn from(token: store::tokens::Token) -> Self {
        Self {
            id: token.id,
            project: token.project,
            name: token.name,
            scopes: token.scopes,
            created_at: token.created_at,
            expires_at: token.expires_at,
        }
    }
}
