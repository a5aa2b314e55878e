//! What fuzz targets call of the API's own readers.

use axum::http::{HeaderMap, HeaderValue};

use super::{
    builds, events, operations, projects,
    query::parse,
    stream::{ranged::ByteRange, sse},
    uploads,
};

/// Reads a query string as each of the operations that take parameters does.
pub fn queries(query: &str) {
    drop(parse::<builds::list::Params>(query));
    drop(parse::<builds::events::Params>(query));
    drop(parse::<builds::get::Params>(query));
    drop(parse::<builds::logs::Params>(query));
    drop(parse::<events::Params>(query));
    drop(parse::<operations::readyz::Params>(query));
    drop(parse::<projects::list::Params>(query));
    drop(parse::<uploads::create::Asked>(query));
}

/// The number in a `Last-Event-ID`.
pub fn last_event_id(text: &str) -> Option<i64> {
    let mut headers = HeaderMap::new();
    headers.insert("last-event-id", HeaderValue::from_str(text).ok()?);
    sse::last_event_id(&headers).ok()?
}

/// First and last byte that a `Range` names in a text of this length.
pub fn range(text: &str, length: u64) -> Option<(u64, u64)> {
    ByteRange::parse(text)?.within(length)
}
