//! Query parameters, read like the fields of a body: every mistake at once, and unknown names are mistakes too, because
//! a filter that is silently ignored answers another question than the one asked.

use std::str::FromStr;

use axum::{extract::FromRequestParts, http::request::Parts};
use serde_json::{Map, Value};
use url::form_urlencoded;

use super::error::ApiError;
use crate::domain::spec::{
    Invalid,
    reader::{Errors, Object, Reported},
};

/// A set of parameters that an operation takes.
pub(super) trait Parameters: Sized {
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

fn parse<P: Parameters>(query: &str) -> Result<P, ApiError> {
    let errors = Errors::default();
    let mut fields = Map::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if fields
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
