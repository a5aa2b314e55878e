//! `POST /hooks/{hook}`.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::carry_out::{carry_out, delivery};
use crate::{
    domain::{
        hook::{HookSecret, Incoming, Malformed, Reading},
        spec::reader::{Object, Reported},
    },
    http::{
        body,
        error::{ApiError, Missing},
        path::HookPath,
        problem::Problem,
        query::{Parameters, Query},
        state::App,
    },
    store::hooks::{
        self, Hook,
        deliveries::{self, Delivery, DeliveryOutcome},
    },
};

/// Largest payload, in bytes.
const MAX_PAYLOAD: usize = 5 << 20;

pub(in crate::http) struct Params {
    token: Option<String>,
}

impl Parameters for Params {
    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let token = query.field("token").text()?;
        Ok(Self {
            token: token.map(str::to_owned),
        })
    }
}

/// What became of a delivery.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HookAnswer)]
pub(in crate::http) struct Received {
    /// The delivery's id, to look it up by.
    delivery: Uuid,
    /// `built`, `repeated` or `ignored`.
    outcome: DeliveryOutcome,
    /// Why nothing was built.
    reason: Option<String>,
    /// The builds: new ones, or those that were made of the same before.
    builds: Vec<BuildLink>,
}

/// A build that a delivery was answered with.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HookBuild)]
pub(in crate::http) struct BuildLink {
    /// Its id.
    id: Uuid,
    /// Where it is.
    url: String,
}

impl BuildLink {
    /// Links to the builds of a delivery.
    pub(in crate::http) fn all(app: &App, delivery: &Delivery) -> Vec<Self> {
        let link = |id: &crate::domain::id::BuildId| Self {
            id: id.0,
            url: app.link(&format!("/v1/builds/{id}")),
        };
        delivery.builds.iter().map(link).collect()
    }
}

/// Tell a hook what happened. For forges and registries, not for callers of the API.
///
/// The hook's secret takes the place of a token: what has to be signed or sent, and how, depends on the hook's `forge`.
/// A delivery that comes again is answered with the same builds.
#[utoipa::path(
    post, path = "/hooks/{hook}", tag = "hooks", operation_id = "receiveDelivery", security(()),
    params(
        ("hook" = Uuid, Path, description = "The hook's id"),
        ("token" = Option<String>, Query, description = "The secret, for registries that can send no header"),
    ),
    request_body(content = Object, description = "The sender's payload, at most 5 MiB"),
    responses(
        (status = 201, description = "Builds were made", body = Received),
        (status = 200, description = "Nothing new was built: `outcome` and `reason` say why", body = Received),
        (status = 400, description = "The payload isn't what the sender sends", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The delivery isn't signed with the hook's secret", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such hook", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The payload is too large", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The hook's request can't be built any more; `pointer` is the place in the request", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn receive(
    State(app): State<App>,
    Query(Params { token }): Query<Params>,
    HookPath(id): HookPath,
    request: Request,
) -> Result<(StatusCode, Json<Received>), ApiError> {
    let hook = hooks::get(&app.pool, id)
        .await?
        .ok_or(ApiError::NotFound(Missing::Hook))?;
    let headers = texts(request.headers());
    let bytes = body::bytes(request, MAX_PAYLOAD).await?;
    let incoming = Incoming {
        headers,
        token,
        body: &bytes,
    };
    let forge = hook.definition.forge;
    if !forge.verify(&secrets(&app, &hook)?, &incoming, app.clock.now()) {
        tracing::warn!(hook.id = %hook.id, project = %hook.project, "a delivery was refused");
        let reason = "no signature or token that fits the hook's secret".to_owned();
        let refused = delivery(&app, &hook, None, Vec::new(), None);
        deliveries::record(&app.pool, refused, DeliveryOutcome::Refused, Some(reason)).await?;
        return Err(ApiError::DeliveryRefused);
    }
    let new = |events| delivery(&app, &hook, forge.delivery_id(&incoming), events, None);
    let (status, stored) = match forge.read(&incoming) {
        Ok(Reading::Events(events)) => carry_out(&app, &hook, new(events)).await?,
        Ok(Reading::Nothing(reason)) => {
            let new = new(Vec::new());
            let stored = deliveries::record(&app.pool, new, DeliveryOutcome::Ignored, Some(reason)).await?;
            (StatusCode::OK, stored)
        }
        Err(Malformed(reason)) => {
            let new = new(Vec::new());
            deliveries::record(&app.pool, new, DeliveryOutcome::Malformed, Some(reason.clone())).await?;
            return Err(ApiError::DeliveryMalformed(reason));
        }
    };
    let received = Received {
        delivery: stored.id,
        outcome: stored.outcome,
        builds: BuildLink::all(&app, &stored),
        reason: stored.reason,
    };
    Ok((status, Json(received)))
}

/// The secrets that are good at present.
fn secrets(app: &App, hook: &Hook) -> Result<Vec<HookSecret>, ApiError> {
    let open = |shared: &hooks::secrets::Shared| {
        let plaintext = app.keyring.open(shared.place, &shared.sealed).map_err(ApiError::Seal)?;
        Ok(HookSecret::from_text(String::from_utf8_lossy(&plaintext).into_owned()))
    };
    hook.secrets.iter().map(open).collect()
}

/// Headers that came once and are text. Of one that came twice nobody knows which counts.
fn texts(headers: &HeaderMap) -> BTreeMap<String, String> {
    let once = headers.keys().filter_map(|name| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())),
            _ => None,
        }
    });
    once.collect()
}
