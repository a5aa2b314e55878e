//! From what a delivery says to builds, or to the reason why there are none.

use axum::http::StatusCode;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    domain::{
        hook::{Decision, Event, Origin},
        id::BuildId,
        spec::{reader::FieldError, request::BuildRequest},
    },
    http::{builds::accept, error::ApiError, state::App, trace},
    store::{
        builds::NewBuild,
        hooks::{
            Hook,
            deliveries::{self, AcceptOutcome, Delivery, DeliveryOutcome, NewDelivery, Wanted},
        },
    },
};

/// What an event comes to by a hook's rules.
pub(in crate::http) struct Decided {
    /// Events that are wanted, with the requests that are made of them.
    pub(in crate::http) wanted: Vec<(Event, Vec<Value>)>,
    /// Why the others aren't.
    pub(in crate::http) reasons: Vec<String>,
}

impl Decided {
    /// Asks the rules.
    pub(in crate::http) fn by(hook: &Hook, events: &[Event]) -> Self {
        let mut decided = Self {
            wanted: Vec::new(),
            reasons: Vec::new(),
        };
        for event in events {
            let definition = &hook.definition;
            match definition.rules.decide(hook.id, definition.forge, event) {
                Decision::Build(requests) => decided.wanted.push((event.clone(), requests)),
                Decision::Ignored(reason) if decided.reasons.contains(&reason) => {}
                Decision::Ignored(reason) => decided.reasons.push(reason),
            }
        }
        decided
    }

    /// The reasons as one.
    pub(in crate::http) fn reason(&self) -> Option<String> {
        (!self.reasons.is_empty()).then(|| self.reasons.join("; "))
    }
}

/// A delivery about to be stored, as it came at this moment.
pub(in crate::http) fn delivery(
    app: &App,
    hook: &Hook,
    sent_id: Option<String>,
    events: Vec<Event>,
    redelivery_of: Option<Uuid>,
) -> NewDelivery {
    NewDelivery {
        id: Uuid::now_v7(),
        hook: hook.id,
        sent_id,
        events,
        redelivery_of,
        received_at: app.clock.now(),
    }
}

/// Does what the hook's rules say about a delivery, and stores what became of it: 201 when builds were made.
pub(in crate::http) async fn carry_out(
    app: &App,
    hook: &Hook,
    delivery: NewDelivery,
) -> Result<(StatusCode, Delivery), ApiError> {
    let decided = Decided::by(hook, &delivery.events);
    if decided.wanted.is_empty() {
        let stored = deliveries::record(&app.pool, delivery, DeliveryOutcome::Ignored, decided.reason()).await?;
        return Ok((StatusCode::OK, stored));
    }
    match accept_all(app, hook, &delivery, decided.wanted).await {
        Ok((stored, made)) => {
            tracing::info!(
                hook.id = %hook.id, delivery.id = %stored.id, project = %hook.project, builds = stored.builds.len(), made,
                "a delivery was accepted"
            );
            let status = if made > 0 { StatusCode::CREATED } else { StatusCode::OK };
            Ok((status, stored))
        }
        // The owner has something to mend: it shows with the delivery.
        Err(ApiError::InvalidBody(errors)) => {
            let told: Vec<_> = errors
                .iter()
                .map(|FieldError { pointer, detail }| format!("{pointer}: {detail}"))
                .collect();
            deliveries::record(&app.pool, delivery, DeliveryOutcome::Invalid, Some(told.join("; "))).await?;
            Err(ApiError::InvalidBody(errors))
        }
        Err(other) => Err(other),
    }
}

/// Makes the builds of all wanted events, or none. Returns how many are new.
async fn accept_all(
    app: &App,
    hook: &Hook,
    delivery: &NewDelivery,
    wanted: Vec<(Event, Vec<Value>)>,
) -> Result<(Delivery, usize), ApiError> {
    let mut prepared = Vec::new();
    for (event, requests) in wanted {
        let origin = Origin::new(hook.id, delivery.id, hook.definition.forge, &event);
        let mut builds = Vec::new();
        for request in &requests {
            builds.push(build(app, hook, request, origin.clone()).await?);
        }
        prepared.push(Wanted {
            key: event.semantic_key(),
            builds,
        });
    }
    match deliveries::accept(&app.pool, delivery.clone(), prepared).await? {
        AcceptOutcome::Accepted { delivery, made } => {
            for (build, superseded) in &made {
                accept::tell(app, build, superseded);
            }
            Ok((delivery, made.len()))
        }
        AcceptOutcome::NotCreated(outcome) => Err(accept::refusal(&outcome, &hook.project, false)),
    }
}

/// A build of one request, checked as if a caller had sent it.
async fn build(app: &App, hook: &Hook, request: &Value, origin: Origin) -> Result<NewBuild, ApiError> {
    let read = BuildRequest::read(request, &app.limits).map_err(ApiError::InvalidBody)?;
    accept::can_be_fetched(&read.spec.source, app)?;
    let coalesce = read.coalesce;
    let spec = accept::spec(app, &hook.project, read, None).await?;
    let listed = request["registry_credentials"].is_array();
    accept::check_secrets(app, &hook.project, &spec, listed, None).await?;
    let now = app.clock.now();
    Ok(NewBuild {
        id: BuildId::at(now),
        project: hook.project.clone(),
        spec,
        queue: app.queue,
        created_at: now,
        retry: None,
        coalesce,
        trace: trace::parent(),
        origin: Some(origin),
    })
}
