//! `POST /v1/projects/{project}/tokens`.

use std::str::FromStr;

use axum::{Json, extract::State, http::StatusCode};
use chrono::{DateTime, SubsecRound as _, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::TokenView;
use crate::{
    domain::{
        project::Scope,
        spec::{
            Invalid,
            reader::{Errors, Field, FieldError, Object, Reported},
        },
    },
    http::{
        auth::Caller,
        body::JsonBody,
        error::{ApiError, Missing},
        path::ProjectPath,
        problem::Problem,
        state::App,
        token::BearerToken,
    },
    store::tokens::{self, NewToken},
};

/// A token to be made.
#[derive(Debug, Serialize, ToSchema)]
struct CreateToken {
    /// What to call it: one line of 1 to 100 characters.
    name: String,
    /// What it is to allow; at least one, and none that the maker's token lacks.
    scopes: Vec<Scope>,
    /// When it is to stop working (RFC 3339); never when absent.
    expires_at: Option<DateTime<Utc>>,
}

/// A new token.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct CreatedToken {
    #[serde(flatten)]
    view: TokenView,
    /// The token. It is shown here once and can't be had again.
    token: String,
}

/// Make a token for a project. Needs the scope `project:admin`.
#[utoipa::path(
    post, path = "/v1/projects/{project}/tokens", tag = "projects", operation_id = "createToken",
    params(("project" = String, Path, description = "The project")),
    request_body = CreateToken,
    responses(
        (status = 201, description = "The token, shown this once", body = CreatedToken),
        (status = 403, description = "The caller's token doesn't cover the scopes", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are invalid", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    ProjectPath(project): ProjectPath,
    JsonBody(document): JsonBody,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    caller.require_in(&project, Scope::ProjectAdmin)?;
    let request = Request::read(&document, app.clock.now()).map_err(ApiError::InvalidBody)?;
    let beyond: Vec<FieldError> = request
        .scopes
        .iter()
        .enumerate()
        .filter(|(_, scope)| !caller.covers(**scope))
        .map(|(index, scope)| FieldError {
            pointer: format!("/scopes/{index}"),
            detail: format!("`{scope}` is more than your own token covers"),
        })
        .collect();
    if !beyond.is_empty() {
        return Err(ApiError::ScopesBeyondOwn(beyond));
    }
    let token = BearerToken::from_random(app.random.bytes());
    let new = NewToken {
        id: Uuid::now_v7(),
        project,
        name: request.name,
        hash: token.hash(),
        scopes: request.scopes,
        expires_at: request.expires_at,
    };
    let stored = tokens::create(&app.pool, new)
        .await?
        .ok_or(ApiError::NotFound(Missing::Project))?;
    let created = CreatedToken {
        view: stored.into(),
        token: token.expose().to_owned(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    name: String,
    scopes: Vec<Scope>,
    expires_at: Option<DateTime<Utc>>,
}

impl Request {
    fn read(document: &Value, now: DateTime<Utc>) -> Result<Self, Vec<FieldError>> {
        let errors = Errors::default();
        let request = Object::document(document, &errors).and_then(|root| {
            let name = root.field("name").required::<Name>();
            let scopes = scopes(&root.field("scopes"));
            let expires_at = expiry(&root.field("expires_at"), now);
            root.finish();
            Ok(Self {
                name: name?.0,
                scopes: scopes?,
                expires_at: expires_at?,
            })
        });
        errors.finish(request)
    }
}

struct Name(String);

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if (1..=100).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new("expected one line of 1 to 100 characters, such as `ci`"))
        }
    }
}

fn scopes(field: &Field<'_>) -> Result<Vec<Scope>, Reported> {
    let elements = field.elements()?.unwrap_or_default();
    if elements.is_empty() {
        return Err(
            field.report("required: expected at least one of builds:read, builds:write, project:admin or admin")
        );
    }
    let choices = Scope::ALL.map(|scope| (scope.as_str(), scope));
    let mut scopes = Vec::new();
    let mut result = Ok(());
    for element in elements {
        match element.one_of(&choices) {
            Ok(Some(scope)) if scopes.contains(&scope) => result = Err(element.report("given twice")),
            Ok(Some(scope)) => scopes.push(scope),
            Ok(None) => result = Err(element.report("expected a scope")),
            Err(reported) => result = Err(reported),
        }
    }
    result.map(|()| scopes)
}

fn expiry(field: &Field<'_>, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, Reported> {
    let Some(text) = field.text()? else { return Ok(None) };
    match DateTime::parse_from_rfc3339(text) {
        // Postgres keeps microseconds, and no years beyond 294276.
        Ok(time) if time > now && time.to_utc() < DateTime::<Utc>::MAX_UTC => Ok(Some(time.to_utc().trunc_subsecs(6))),
        Ok(_) => Err(field.report("expected a time in the future")),
        Err(_) => Err(field.report("expected a time such as `2030-01-31T12:00:00Z` (RFC 3339)")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_are_read_or_refused_as_a_whole() {
        let now = DateTime::<Utc>::UNIX_EPOCH;
        let good =
            json!({"name": "ci", "scopes": ["builds:read", "builds:write"], "expires_at": "1970-01-02T00:00:00+01:00"});
        let request = Request::read(&good, now).expect("accepted");
        assert_eq!(request.scopes, [Scope::BuildsRead, Scope::BuildsWrite]);
        assert_eq!(request.expires_at, Some(now + chrono::TimeDelta::hours(23)));

        let bad = json!({"name": "a\nb", "scopes": ["builds:reed", "admin", "admin"], "expires_at": "1969-01-01T00:00:00Z", "x": 1});
        let pointers: Vec<_> = Request::read(&bad, now)
            .expect_err("refused")
            .into_iter()
            .map(|error| error.pointer)
            .collect();
        assert_eq!(pointers, ["/name", "/scopes/0", "/scopes/2", "/expires_at", "/x"]);
        assert!(Request::read(&json!({"name": "x", "scopes": []}), now).is_err());
    }
}
