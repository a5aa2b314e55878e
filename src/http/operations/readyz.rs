//! `GET /readyz`.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    http::state::App,
    store::{self, SchemaState},
};

/// The database has this long to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Whether what Kiln depends on is there.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Readiness {
    /// Needed for every call.
    database: Dependency,
    /// Needed to run builds; without it they stay queued. Null where this process only serves the API.
    cluster: Option<Dependency>,
}

/// Something that Kiln depends on.
#[derive(Debug, Serialize, ToSchema)]
struct Dependency {
    /// Whether it can be used.
    ok: bool,
    /// What is wrong with it, for an operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<Result<(), String>> for Dependency {
    fn from(result: Result<(), String>) -> Self {
        Self {
            ok: result.is_ok(),
            reason: result.err(),
        }
    }
}

/// Whether the service can do its work, and if not, what is missing.
#[utoipa::path(
    get, path = "/readyz", tag = "operations", operation_id = "readyz", security(()),
    responses(
        (status = 200, description = "It can", body = Readiness),
        (status = 503, description = "Something is missing", body = Readiness),
    ),
)]
pub(in crate::http) async fn readyz(State(app): State<App>) -> (StatusCode, Json<Readiness>) {
    let database = database(&app).await;
    let cluster = app.health.cluster.as_ref().map(|cluster| cluster.borrow().clone());
    let ready = database.is_ok() && cluster.as_ref().is_none_or(Result::is_ok);
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let readiness = Readiness {
        database: database.into(),
        cluster: cluster.map(Dependency::from),
    };
    (status, Json(readiness))
}

async fn database(app: &App) -> Result<(), String> {
    match tokio::time::timeout(TIMEOUT, store::check(&app.pool)).await {
        Ok(Ok(SchemaState::Current)) => Ok(()),
        Ok(Ok(SchemaState::Outdated)) => {
            Err("the schema is older than this version of Kiln: run `kiln migrate`".to_owned())
        }
        Ok(Err(error)) => {
            tracing::warn!(error = ?error, "the database isn't ready");
            Err("the database can't be used: check that it runs and that KILN_DATABASE_URL is right".to_owned())
        }
        Err(_) => Err(format!(
            "the database didn't answer within {} seconds",
            TIMEOUT.as_secs()
        )),
    }
}
