//! `/v1/projects/{project}/hooks/{hook}/deliveries`: what came to a hook, and what became of it.

pub(in crate::http) mod create;
pub(in crate::http) mod list;
pub(in crate::http) mod redeliver;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    domain::hook::Event,
    http::{hooks::receive::BuildLink, state::App},
    store::hooks::deliveries::{Delivery, DeliveryOutcome},
};

/// A delivery.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HookDelivery)]
pub(in crate::http) struct DeliveryView {
    /// Its id.
    id: Uuid,
    /// What the sender calls it.
    sent_id: Option<String>,
    /// What became of it.
    outcome: DeliveryOutcome,
    /// Why, unless something was built.
    reason: Option<String>,
    /// What it said, as far as it was read; nothing else of the payload is kept.
    events: Vec<Event>,
    /// The builds that it was answered with.
    builds: Vec<BuildLink>,
    /// With `tried`: what `POST /v1/builds` would have been asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    requests: Vec<Value>,
    /// The delivery that was sent again by this one.
    redelivery_of: Option<Uuid>,
    /// When it came.
    received_at: DateTime<Utc>,
}

impl DeliveryView {
    fn new(app: &App, delivery: Delivery) -> Self {
        Self {
            builds: BuildLink::all(app, &delivery),
            id: delivery.id,
            sent_id: delivery.sent_id,
            outcome: delivery.outcome,
            reason: delivery.reason,
            events: delivery.events,
            requests: Vec::new(),
            redelivery_of: delivery.redelivery_of,
            received_at: delivery.received_at,
        }
    }
}
