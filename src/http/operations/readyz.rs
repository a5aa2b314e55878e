//! `GET /readyz`.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    domain::spec::reader::{Object, Reported},
    http::{
        problem::Problem,
        query::{Parameters, Query},
        state::App,
    },
    store::{self, SchemaState},
};

/// The database has this long to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

pub(in crate::http) struct Params {
    without_cluster: bool,
}

impl Parameters for Params {
    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let excluded = query.field("exclude").one_of(&[("cluster", ())])?;
        Ok(Self {
            without_cluster: excluded.is_some(),
        })
    }
}

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
///
/// With `exclude=cluster` the cluster is told of, but doesn't decide: without it builds are accepted and wait, and all
/// else works, so it is no reason for a load balancer to leave a replica out.
#[utoipa::path(
    get, path = "/readyz", tag = "operations", operation_id = "readyz", security(()),
    params(("exclude" = Option<String>, Query, description = "`cluster`: answer 200 though the cluster can't be used")),
    responses(
        (status = 200, description = "It can", body = Readiness),
        (status = 400, description = "No such parameter or value", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Something is missing", body = Readiness),
    ),
)]
pub(in crate::http) async fn readyz(
    State(app): State<App>,
    Query(params): Query<Params>,
) -> (StatusCode, Json<Readiness>) {
    let database = database(&app).await;
    let cluster = app.health.cluster.as_ref().map(|cluster| cluster.borrow().clone());
    let ready = database.is_ok() && (params.without_cluster || cluster.as_ref().is_none_or(Result::is_ok));
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
