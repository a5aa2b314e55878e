//! Operations that take no query parameters refuse all of them: a parameter that is silently ignored answers another
//! question than the one asked. Which operations those are is read from the description of the API. The others read
//! their parameters by [`super::query::Query`], which knows their names.

use std::{collections::BTreeSet, sync::LazyLock};

use axum::{
    extract::{MatchedPath, Request},
    http::Method,
    middleware::Next,
    response::{IntoResponse, Response},
};
use url::form_urlencoded;
use utoipa::openapi::{
    RefOr,
    path::{Operation, ParameterIn},
};

use super::{error::ApiError, router};
use crate::domain::spec::reader::FieldError;

/// Method and path of every operation that has query parameters.
static WITH_PARAMETERS: LazyLock<BTreeSet<(Verb, String)>> = LazyLock::new(|| {
    let document = router::openapi();
    let operations = document.paths.paths.iter().flat_map(|(path, item)| {
        [
            (Verb::Get, &item.get),
            (Verb::Post, &item.post),
            (Verb::Put, &item.put),
            (Verb::Patch, &item.patch),
            (Verb::Delete, &item.delete),
        ]
        .into_iter()
        .filter(|(_, operation)| operation.as_ref().is_some_and(takes_parameters))
        .map(|(method, _)| (method, path.clone()))
    });
    operations.collect()
});

/// The methods that operations have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verb {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    fn of(method: &Method) -> Option<Self> {
        match *method {
            Method::GET | Method::HEAD => Some(Self::Get),
            Method::POST => Some(Self::Post),
            Method::PUT => Some(Self::Put),
            Method::PATCH => Some(Self::Patch),
            Method::DELETE => Some(Self::Delete),
            _ => None,
        }
    }
}

fn takes_parameters(operation: &Operation) -> bool {
    operation.parameters.iter().flatten().any(
        |parameter| matches!(parameter, RefOr::T(parameter) if matches!(parameter.parameter_in, ParameterIn::Query)),
    )
}

/// Middleware: refuses parameters where none are taken.
pub(super) async fn refuse_parameters(request: Request, next: Next) -> Response {
    let errors = unexpected(&request);
    if errors.is_empty() {
        next.run(request).await
    } else {
        ApiError::InvalidQuery(errors).into_response()
    }
}

fn unexpected(request: &Request) -> Vec<FieldError> {
    let query = request.uri().query().unwrap_or_default();
    // Paths and methods without an operation are refused for what they are.
    let (false, Some(path), Some(method)) = (
        query.is_empty(),
        request.extensions().get::<MatchedPath>(),
        Verb::of(request.method()),
    ) else {
        return Vec::new();
    };
    // Operations for attempts aren't described; they read their parameters by themselves.
    if path.as_str().starts_with("/internal/") || WITH_PARAMETERS.contains(&(method, path.as_str().to_owned())) {
        return Vec::new();
    }
    form_urlencoded::parse(query.as_bytes())
        .map(|(name, _)| FieldError {
            pointer: format!("/{name}"),
            detail: "unknown parameter; this operation takes none".to_owned(),
        })
        .collect()
}
