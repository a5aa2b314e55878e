//! `GET /v1/nodes`.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    domain::{
        node::{FaultyNode, NodeFailure},
        project::Scope,
    },
    http::{auth::Caller, error::ApiError, problem::Problem, state::App},
    store,
};

/// Nodes that have failed attempts lately.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct NodeList {
    /// Those that are avoided come first.
    items: Vec<NodeView>,
}

/// A node that has failed attempts lately.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Node)]
struct NodeView {
    /// Its name.
    name: String,
    /// Until when all replicas send builds elsewhere, where they can be; null when they don't.
    avoided_until: Option<DateTime<Utc>>,
    /// What it is to blame for, oldest first.
    failures: Vec<NodeFailure>,
}

impl From<FaultyNode> for NodeView {
    fn from(node: FaultyNode) -> Self {
        Self {
            name: node.name,
            avoided_until: node.avoided_until,
            failures: node.failures,
        }
    }
}

/// See which nodes have failed attempts lately, and which of them are avoided. Needs the scope `admin`.
#[utoipa::path(
    get, path = "/v1/nodes", tag = "operations", operation_id = "listNodes",
    responses(
        (status = 200, description = "Nodes that have failed attempts lately", body = NodeList),
        (status = 403, description = "The token lacks the scope `admin`", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn list(State(app): State<App>, caller: Caller) -> Result<Json<NodeList>, ApiError> {
    caller.require(Scope::Admin)?;
    let nodes = store::nodes::list(&app.pool).await?;
    Ok(Json(NodeList {
        items: nodes.into_iter().map(NodeView::from).collect(),
    }))
}
