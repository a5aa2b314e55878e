//! `POST /v1/stream-tickets`.

use axum::{Json, extract::State, http::StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    auth::Caller,
    body::JsonBody,
    error::{ApiError, Missing},
    problem::Problem,
    projects,
    state::App,
    token::StreamTicket,
};
use crate::{
    domain::{
        id::BuildId,
        project::{ProjectName, Scope},
        spec::reader::{Errors, FieldError, Object},
    },
    store::{tickets, tickets::Streams},
};

/// How long a ticket opens streams. It ends up in addresses, which proxies write down; a stream that is open stays so.
const LIFETIME: TimeDelta = TimeDelta::minutes(5);

/// What a ticket is to open: one of the two, or neither for the project of the caller's token (with the scope `admin`:
/// for all projects).
#[derive(Debug, Serialize, ToSchema)]
struct CreateStreamTicket {
    /// Events and logs of this build.
    build: Option<Uuid>,
    /// Changes of all builds of this project.
    project: Option<ProjectName>,
}

/// A ticket for streams.
#[derive(Serialize, ToSchema)]
#[schema(as = StreamTicket)]
pub(super) struct TicketView {
    /// The ticket: `?ticket=…` on one of the streams.
    ticket: String,
    /// Until when it opens streams, again and again. A stream that is open by then goes on.
    expires_at: DateTime<Utc>,
    /// Addresses that it opens, without it.
    streams: Vec<String>,
}

/// Make a ticket that opens streams without a header.
///
/// For `EventSource` in browsers, which can't send `Authorization`. The ticket opens the streams of one build or of one
/// project for five minutes, and nothing else; it ends with the token that it was made with.
#[utoipa::path(
    post, path = "/v1/stream-tickets", tag = "builds", operation_id = "createStreamTicket",
    request_body = CreateStreamTicket,
    responses(
        (status = 201, description = "The ticket", body = TicketView),
        (status = 404, description = "No such build or project for this token", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are invalid", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    JsonBody(document): JsonBody,
) -> Result<(StatusCode, Json<TicketView>), ApiError> {
    caller.require(Scope::BuildsRead)?;
    let (streams, missing) = match read(&document).map_err(ApiError::InvalidBody)? {
        (Some(id), _) => {
            caller.build(&app, id).await?;
            (Streams::Build(id), Missing::Build)
        }
        (None, Some(project)) => {
            caller.require_in(&project, Scope::BuildsRead)?;
            projects::existing(&app, &project).await?;
            (Streams::Project(project), Missing::Project)
        }
        (None, None) if caller.is_admin() => (Streams::Everything, Missing::Project),
        (None, None) => (Streams::Project(caller.project().clone()), Missing::Project),
    };
    let ticket = StreamTicket::from_random(app.random.bytes());
    let now = app.clock.now();
    let expires_at = now + LIFETIME;
    if !tickets::create(&app.pool, &ticket.hash(), caller.token(), &streams, now, expires_at).await? {
        return Err(ApiError::NotFound(missing));
    }
    let streams = match &streams {
        Streams::Build(id) => ["events", "logs"]
            .map(|last| format!("/v1/builds/{id}/{last}"))
            .to_vec(),
        Streams::Project(project) => vec![format!("/v1/events?project={project}")],
        Streams::Everything => vec!["/v1/events".to_owned()],
    };
    let view = TicketView {
        ticket: ticket.expose().to_owned(),
        expires_at,
        streams: streams.iter().map(|path| app.link(path)).collect(),
    };
    Ok((StatusCode::CREATED, Json(view)))
}

fn read(document: &Value) -> Result<(Option<BuildId>, Option<ProjectName>), Vec<FieldError>> {
    let errors = Errors::default();
    let request = Object::document(document, &errors).and_then(|root| {
        let field = root.field("build");
        let build = field.text().and_then(|text| {
            text.map(|text| text.parse().map_err(|_| field.report("expected the id of a build")))
                .transpose()
        });
        let project_field = root.field("project");
        let project = project_field.parse();
        root.finish();
        if matches!((&build, &project), (Ok(Some(_)), Ok(Some(_)))) {
            return Err(project_field.report("expected either `build` or `project`: a ticket opens the streams of one"));
        }
        Ok((build?, project?))
    });
    errors.finish(request)
}
