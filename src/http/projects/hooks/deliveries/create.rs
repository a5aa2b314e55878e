//! `POST /v1/projects/{project}/hooks/{hook}/deliveries`.

use axum::{Json, extract::State, http::StatusCode};
use serde_json::Value;
use utoipa::ToSchema;

use super::DeliveryView;
use crate::{
    domain::{
        hook::{EventKind, stated},
        spec::{
            reader::{Errors, Object},
            request::BuildRequest,
        },
    },
    http::{
        auth::ManagedProject,
        body::JsonBody,
        error::ApiError,
        hooks::carry_out::{Decided, carry_out, delivery},
        path::HookPath,
        problem::Problem,
        projects::hooks::existing,
        state::App,
    },
    store::hooks::deliveries::{self, DeliveryOutcome},
};

/// An event to be delivered by hand.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
struct CreateHookDelivery {
    /// What happened; `manual` when absent, which the paths and the skip markers of a hook don't keep from being built.
    event: Option<EventKind>,
    /// The repository's full name, such as `team/app`; of an image, its name without a tag.
    repository: String,
    /// Where it is cloned from.
    clone_url: Option<String>,
    /// The full ref name; `refs/heads/` or `refs/tags/` and what follows stand for `branch` and `tag`.
    r#ref: Option<String>,
    /// The full commit id.
    commit: Option<String>,
    /// A branch.
    branch: Option<String>,
    /// A tag.
    tag: Option<String>,
    /// The number of a pull request.
    pull_request: Option<u64>,
    /// The branch that it wants to be merged.
    source_branch: Option<String>,
    /// The branch that it wants to be merged into.
    target_branch: Option<String>,
    /// Whether it comes from another repository.
    from_fork: Option<bool>,
    /// The newest commit's message.
    message: Option<String>,
    /// The files that changed, where they are known.
    files: Option<Vec<String>>,
    /// The digest of an image.
    digest: Option<String>,
    /// Whether only to tell what would be built; false when absent.
    dry_run: Option<bool>,
}

/// Deliver an event by hand: to try out a hook with `dry_run`, or to build. Needs the scope `project:admin`.
///
/// The hook's rules decide as they do about what its forge sends.
#[utoipa::path(
    post, path = "/v1/projects/{project}/hooks/{hook}/deliveries", tag = "hooks", operation_id = "createHookDelivery",
    params(
        ("project" = String, Path, description = "The project"),
        ("hook" = Uuid, Path, description = "The hook's id"),
    ),
    request_body = CreateHookDelivery,
    responses(
        (status = 201, description = "Builds were made", body = DeliveryView),
        (status = 200, description = "Nothing new was built: `outcome`, `reason` and, with `dry_run`, `requests` say what became of it", body = DeliveryView),
        (status = 404, description = "No such hook", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are invalid, or the hook's request can't be built", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn create(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    HookPath(id): HookPath,
    JsonBody(document): JsonBody,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    let hook = existing(&app, &project, id).await?;
    let errors = Errors::default();
    let asked = Object::document(&document, &errors).and_then(|root| {
        let event = stated(&root, Some(EventKind::Manual));
        let dry_run = root.field("dry_run").boolean();
        root.finish();
        Ok((event?, dry_run?.unwrap_or(false)))
    });
    let (event, dry_run) = errors.finish(asked).map_err(ApiError::InvalidBody)?;
    let new = delivery(&app, &hook, None, vec![event], None);
    if !dry_run {
        let (status, stored) = carry_out(&app, &hook, new).await?;
        return Ok((status, Json(DeliveryView::new(&app, stored))));
    }
    let decided = Decided::by(&hook, &new.events);
    let reason = decided.reason();
    let requests: Vec<Value> = decided.wanted.into_iter().flat_map(|(_, requests)| requests).collect();
    let outcome = if requests.is_empty() {
        DeliveryOutcome::Ignored
    } else {
        DeliveryOutcome::Tried
    };
    for request in &requests {
        BuildRequest::read(request, &app.limits).map_err(ApiError::InvalidBody)?;
    }
    let stored = deliveries::record(&app.pool, new, outcome, reason).await?;
    let view = DeliveryView {
        requests,
        ..DeliveryView::new(&app, stored)
    };
    Ok((StatusCode::OK, Json(view)))
}
