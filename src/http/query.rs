//! Query parameters, read like the fields of a body: every mistake at once, and unknown names are mistakes too, because
//! a filter that is silently ignored answers another question than the one asked.

use std::str::FromStr;

use axum::{extract::FromRequestParts, http::request::Parts};
use chrono::{DateTime, Datelike as _, Utc};
use serde_json::{Map, Value};
use url::form_urlencoded;

use super::error::ApiError;
use crate::domain::spec::{
    Invalid,
    reader::{Errors, Field, Object, Reported},
};

/// A set of parameters that an operation takes.
pub(super) trait Parameters: Sized {
    /// Parameters that may be given more than once; they are read as arrays.
    const REPEATABLE: &'static [&'static str] = &[];

    /// Reads them; the caller reports names that nobody asked for.
    fn read(query: &Object<'_>) -> Result<Self, Reported>;
}

/// The parameters of a request.
pub(super) struct Query<P>(pub(super) P);

impl<S: Send + Sync, P: Parameters> FromRequestParts<S> for Query<P> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parse(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

pub(super) fn parse<P: Parameters>(query: &str) -> Result<P, ApiError> {
    let errors = Errors::default();
    let mut fields = Map::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if P::REPEATABLE.contains(&&*name) {
            let values = fields
                .entry(name.into_owned())
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(values) = values {
                values.push(Value::from(value.into_owned()));
            }
        } else if fields
            .insert(name.clone().into_owned(), Value::from(value.into_owned()))
            .is_some()
        {
            errors.report(&format!("/{name}"), "given more than once");
        }
    }
    let document = Value::Object(fields);
    let parameters = Object::document(&document, &errors).and_then(|query| {
        let parameters = P::read(&query);
        query.finish();
        parameters
    });
    errors.finish(parameters).map_err(ApiError::InvalidQuery)
}

/// Every value of a parameter that may be given more than once.
pub(super) fn each<'a, T>(
    field: &Field<'a>,
    read: impl Fn(&Field<'a>) -> Result<Option<T>, Reported>,
) -> Result<Vec<T>, Reported> {
    let values: Vec<_> = field.elements()?.unwrap_or_default().iter().map(read).collect();
    values.into_iter().filter_map(Result::transpose).collect()
}

/// A moment (RFC 3339).
pub(super) struct Time(pub(super) DateTime<Utc>);

impl FromStr for Time {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // A plus sign that wasn't encoded arrives as a space.
        DateTime::parse_from_rfc3339(&text.replace(' ', "+"))
            .ok()
            .filter(|time| (0..10_000).contains(&time.to_utc().year()))
            .map(|time| Self(time.to_utc()))
            .ok_or_else(|| Invalid::new("expected a time such as `2030-01-31T12:00:00Z` (RFC 3339)"))
    }
}

/// A whole number between two bounds.
pub(super) struct Number<const MIN: i64, const MAX: i64>(pub(super) i64);

impl<const MIN: i64, const MAX: i64> FromStr for Number<MIN, MAX> {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse() {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            _ => Err(Invalid::new(format!("expected a whole number from {MIN} to {MAX}"))),
        }
    }
}

/// A switch: `1` or `true`, `0` or `false`.
pub(super) struct Switch(pub(super) bool);

impl FromStr for Switch {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "1" | "true" => Ok(Self(true)),
            "0" | "false" => Ok(Self(false)),
            _ => Err(Invalid::new("expected `1` or `0`")),
        }
    }
}
