//! `POST /internal/v1/attempts/{attempt}/log/seal`: the end of a step's log.

use axum::{Json, extract::State};
use kiln_agent::wire::push::{PushAnswer, Seal};

use super::{answer, refused, step};
use crate::{
    domain::{
        event::StepName,
        spec::reader::{FieldError, Object, Reported},
    },
    http::{
        attempts::LoggingAttempt,
        body::JsonBody,
        error::ApiError,
        query::{Parameters, Query},
        state::App,
    },
};

/// Which step ends.
pub(in crate::http) struct Ending(StepName);

impl Parameters for Ending {
    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        step(query).map(Self)
    }
}

/// Compares the seal with what has arrived. What differs becomes a gap in the log, and the seal is kept all the same:
/// nothing that could be sent again would change it.
pub(in crate::http) async fn seal(
    State(app): State<App>,
    LoggingAttempt(attempt): LoggingAttempt,
    Query(Ending(step)): Query<Ending>,
    JsonBody(document): JsonBody,
) -> Result<Json<PushAnswer>, ApiError> {
    let sealed = async {
        let seal: Seal = serde_json::from_value(document).map_err(|error| {
            ApiError::InvalidBody(vec![FieldError {
                pointer: String::new(),
                detail: error.to_string(),
            }])
        })?;
        app.pushes.logs().seal(attempt, step, seal).await.map_err(refused)
    };
    answer(&app.pushes, sealed.await)
}
