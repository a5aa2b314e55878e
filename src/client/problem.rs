//! Problem documents, shown to a person at a terminal: each invalid field with the flag that sets it.

use std::{fmt, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use super::words;

/// A refusal of the service (RFC 9457).
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Problem {
    #[serde(default)]
    pub(super) status: u16,
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    errors: Vec<ProblemField>,
    #[serde(default)]
    request_id: Option<String>,
    /// When to come back, if the service has said so.
    #[serde(skip)]
    pub(super) retry_after: Option<Duration>,
    /// What was refused, where flags made it.
    #[serde(skip)]
    pub(super) request: Option<Value>,
    /// The projects that there are for the token, where another was named.
    #[serde(skip)]
    pub(super) projects: Vec<String>,
}

/// One invalid field.
#[derive(Clone, Debug, Deserialize)]
struct ProblemField {
    #[serde(default)]
    pointer: Option<String>,
    #[serde(default)]
    parameter: Option<String>,
    detail: String,
}

impl Problem {
    /// Whether it is about a project that isn't there for this token.
    pub(super) fn lacks_project(&self) -> bool {
        let about = |error: &ProblemField| error.pointer.as_deref() == Some("/project");
        self.code == "project_not_found" || self.errors.iter().any(about)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = match self.code.as_str() {
            _ if self.title.is_empty() => "the service refused",
            "invalid_request" | "invalid_query" => "The command is not valid",
            _ => &self.title,
        };
        write!(f, "{title}")?;
        if self.code == "unauthenticated" {
            let what = self.detail.split(';').next().unwrap_or_default();
            let places = "--token-file, --token, KILN_TOKEN or the configuration file, in this order";
            return write!(
                f,
                ": {}\n  The token that was sent comes from {places}. `kiln token create` or your project's administrator makes others.",
                words::sentence(what)
            );
        }
        if self.errors.is_empty() && !self.detail.is_empty() {
            write!(f, ": {}", words::sentence(&self.detail))?;
        }
        for error in &self.errors {
            let detail = words::detail(error.pointer.as_deref().unwrap_or_default(), &error.detail);
            let place = match (&error.pointer, &error.parameter) {
                (Some(pointer), _) => words::flag(pointer, self.request.as_ref()).or_else(|| Some(pointer.clone())),
                (None, Some(parameter)) => Some(words::parameter(parameter)),
                (None, None) => None,
            };
            match place.filter(|place| !place.is_empty()) {
                Some(place) => write!(f, "\n  {place}: {detail}")?,
                None => write!(f, "\n  {detail}")?,
            }
        }
        if !self.projects.is_empty() {
            write!(f, "\n  Projects of this token: {}", self.projects.join(", "))?;
        }
        if self.status >= 500
            && let Some(id) = &self.request_id
        {
            write!(f, "\n  request_id: {id}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(document: serde_json::Value) -> String {
        serde_json::from_value::<Problem>(document)
            .expect("a problem")
            .to_string()
    }

    #[test]
    fn each_field_stands_on_a_line_with_its_flag() {
        let text = shown(json!({
            "status": 422, "code": "invalid_request", "title": "The request is not valid", "detail": "3 fields are invalid",
            "errors": [
                {"pointer": "/images/0", "detail": "expected a host"},
                {"pointer": "/source/url", "detail": "expected a URL"},
                {"pointer": "/imagesque", "detail": "unknown field"},
            ],
        }));
        assert_eq!(
            text,
            "The command is not valid\n  -t, --tag: expected a host\n  \
             the PATH or URL: expected a URL\n  /imagesque: unknown field"
        );
    }

    #[test]
    fn a_token_that_is_not_known_is_told_where_it_comes_from() {
        let text = shown(json!({
            "status": 401, "code": "unauthenticated", "title": "A valid token is needed",
            "detail": "the Authorization header holds no token of Kiln; send the header `Authorization: Bearer kiln_…`",
        }));
        assert!(
            text.starts_with("A valid token is needed: what was sent is no token of Kiln\n"),
            "{text}"
        );
        assert!(text.contains("KILN_TOKEN") && !text.contains("Authorization"), "{text}");
    }

    #[test]
    fn the_detail_is_shown_where_no_field_is_named() {
        let text = shown(
            json!({"status": 500, "code": "internal", "title": "Kiln failed", "detail": "tell", "request_id": "r1"}),
        );
        assert_eq!(text, "Kiln failed: tell\n  request_id: r1");
    }
}
