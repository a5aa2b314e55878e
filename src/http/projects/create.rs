//! `POST /v1/projects`.

use axum::{
    Json,
    extract::State,
    http::{HeaderName, StatusCode, header},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::ProjectView;
use crate::{
    domain::{
        project::{ProjectName, Scope},
        queue::ProjectLimits,
        spec::reader::{Errors, Object},
    },
    http::{auth::Caller, body::JsonBody, error::ApiError, problem::Problem, state::App},
    store::projects,
};

/// A project to be made.
#[derive(Debug, Serialize, ToSchema)]
struct CreateProject {
    /// Its name: lower-case letters, digits and dashes, at most 63.
    name: ProjectName,
    /// Its share of the installation while several projects wait; 100 when absent.
    #[schema(minimum = 1, maximum = 1000)]
    weight: Option<u16>,
    /// Limits of its own.
    limits: Option<ProjectLimits>,
}

/// Make a project. Needs the scope `admin`.
#[utoipa::path(
    post, path = "/v1/projects", tag = "projects", operation_id = "createProject",
    request_body = CreateProject,
    responses(
        (status = 201, description = "The project", body = ProjectView),
        (status = 409, description = "There is one of this name", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are invalid", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    JsonBody(document): JsonBody,
) -> Result<(StatusCode, [(HeaderName, String); 1], Json<ProjectView>), ApiError> {
    caller.require(Scope::Admin)?;
    let errors = Errors::default();
    let read = Object::document(&document, &errors).and_then(|root| {
        let name = root.field("name").required::<ProjectName>();
        let settings = super::queue_settings(&root);
        root.finish();
        Ok((name?, settings?))
    });
    let (name, settings) = errors.finish(read).map_err(ApiError::InvalidBody)?;
    let project = projects::create_with(&app.pool, &name, &settings)
        .await?
        .ok_or(ApiError::ProjectExists)?;
    let location = app.link(&format!("/v1/projects/{name}"));
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(project.into()),
    ))
}
