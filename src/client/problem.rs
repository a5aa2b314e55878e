//! Problem documents, shown to a person at a terminal: each invalid field with the flag that sets it.

use std::fmt;

use serde::Deserialize;

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

/// The beginnings of pointers, and what sets what is there.
const FLAGS: [(&str, &str); 22] = [
    ("/images", "-t, --tag"),
    ("/push", "--no-push"),
    ("/build_args", "--build-arg"),
    ("/secrets", "--secret"),
    ("/ssh", "--ssh"),
    ("/dockerfile", "-f, --file"),
    ("/target", "--target"),
    ("/platforms", "--platform"),
    ("/labels", "--label"),
    ("/builder", "--builder"),
    ("/template", "--template"),
    ("/timeout_seconds", "--timeout"),
    ("/priority", "--priority"),
    ("/annotations", "--annotation"),
    ("/project", "--project"),
    ("/resources/cpu", "--cpu"),
    ("/resources/memory", "--memory"),
    ("/resources/disk", "--disk"),
    ("/registry_credentials", "--registry-credentials"),
    ("/source/credentials", "--git-credentials"),
    ("/cache", "--cache-from, --cache-to, --no-cache"),
    ("/source", "the PATH or URL"),
];

fn flag(pointer: &str) -> Option<&'static str> {
    let below = |place: &str| {
        let rest = pointer.strip_prefix(place)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(())
    };
    let (_, flag) = FLAGS.iter().find(|(place, _)| below(place).is_some())?;
    Some(flag)
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = if self.title.is_empty() {
            "the service refused"
        } else {
            &self.title
        };
        write!(f, "{title}")?;
        if self.errors.is_empty() && !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        for error in &self.errors {
            let detail = &error.detail;
            match (&error.pointer, &error.parameter) {
                (Some(pointer), _) => match flag(pointer) {
                    Some(flag) => write!(f, "\n  {flag} ({pointer}): {detail}")?,
                    None => write!(f, "\n  {pointer}: {detail}")?,
                },
                (None, Some(parameter)) => write!(f, "\n  --{}: {detail}", parameter.replace('_', "-"))?,
                (None, None) => write!(f, "\n  {detail}")?,
            }
        }
        if self.code == "unauthenticated" {
            let places = "--token-file, --token, KILN_TOKEN or the configuration file, in this order";
            write!(f, "\n  The token that was sent comes from {places}.")?;
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
            "The request is not valid\n  -t, --tag (/images/0): expected a host\n  \
             the PATH or URL (/source/url): expected a URL\n  /imagesque: unknown field"
        );
    }

    #[test]
    fn the_detail_is_shown_where_no_field_is_named() {
        let text = shown(
            json!({"status": 500, "code": "internal", "title": "Kiln failed", "detail": "tell", "request_id": "r1"}),
        );
        assert_eq!(text, "Kiln failed: tell\n  request_id: r1");
    }
}
