//! `GET /v1/projects/{project}/hooks/{hook}/deliveries`.

use std::str::FromStr;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::DeliveryView;
use crate::{
    domain::spec::{
        Invalid,
        reader::{Object, Reported},
    },
    http::{
        auth::ManagedProject,
        error::ApiError,
        path::HookPath,
        problem::Problem,
        projects::hooks::existing,
        query::{Number, Parameters, Query},
        state::App,
    },
    store::hooks::deliveries,
};

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: i64 = 200;

/// A place in the list: everything before this delivery.
struct Cursor(Uuid);

impl FromStr for Cursor {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let id = text.parse();
        id.map(Self)
            .map_err(|_| Invalid::new("expected the `next` of an earlier answer"))
    }
}

pub(in crate::http) struct Params {
    cursor: Option<Cursor>,
    limit: u32,
}

impl Parameters for Params {
    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let cursor = query.field("cursor").parse();
        let limit = query.field("limit").parse::<Number<1, MAX_LIMIT>>();
        Ok(Self {
            cursor: cursor?,
            limit: limit?
                .and_then(|Number(limit)| u32::try_from(limit).ok())
                .unwrap_or(DEFAULT_LIMIT),
        })
    }
}

/// A page of deliveries.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct HookDeliveryList {
    /// The deliveries, newest first.
    items: Vec<DeliveryView>,
    /// The `cursor` of the next page; null on the last one.
    next: Option<String>,
}

/// List what came to a hook, newest first, what was decided and why. Needs the scope `project:admin`.
///
/// Deliveries that were refused are there, too: the first 60 of an hour.
#[utoipa::path(
    get, path = "/v1/projects/{project}/hooks/{hook}/deliveries", tag = "hooks", operation_id = "listHookDeliveries",
    params(
        ("project" = String, Path, description = "The project"),
        ("hook" = Uuid, Path, description = "The hook's id"),
        ("cursor" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200, description = "Deliveries on a page; 50 when absent"),
    ),
    responses(
        (status = 200, description = "A page of deliveries", body = HookDeliveryList),
        (status = 400, description = "A parameter is invalid", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such hook", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn list(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    Query(params): Query<Params>,
    HookPath(id): HookPath,
) -> Result<Json<HookDeliveryList>, ApiError> {
    let hook = existing(&app, &project, id).await?;
    let before = params.cursor.map(|Cursor(id)| id);
    let mut page = deliveries::list(&app.pool, hook.id, before, params.limit + 1).await?;
    let full = page.len() > params.limit as usize;
    page.truncate(params.limit as usize);
    let next = page.last().filter(|_| full).map(|last| last.id.to_string());
    let items = page
        .into_iter()
        .map(|delivery| DeliveryView::new(&app, delivery))
        .collect();
    Ok(Json(HookDeliveryList { items, next }))
}
