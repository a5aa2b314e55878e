//! Calls from web pages of other origins (the Fetch standard's CORS protocol): `[cors]` in the configuration.

use std::{fmt, str::FromStr, time::Duration};

use axum::http::{HeaderName, HeaderValue, Method, header};
use serde::{Deserialize, Serialize};
use tower_http::cors::{AllowOrigin, CorsLayer};
use url::Url;

use crate::domain::spec::Invalid;

/// How long browsers may remember what a preflight said.
const REMEMBERED: Duration = Duration::from_hours(1);

/// Which web pages may call the API. None, where nothing is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    /// Their origins, or `*` for any.
    pub origins: Vec<Origin>,
}

/// An origin as browsers send it, such as `https://app.example`, or `*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin(String);

impl FromStr for Origin {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let valid = text == "*"
            || Url::parse(text).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == text
            });
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new(format!(
                "expected an origin as browsers send it, such as `https://app.example`, without a path, or `*`; got `{text}`"
            )))
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Origin {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.0
    }
}

impl Cors {
    /// What answers preflights and marks answers; `None` where no page may call.
    pub(super) fn layer(&self) -> Option<CorsLayer> {
        if self.origins.is_empty() {
            return None;
        }
        let origins = if self.origins.iter().any(|origin| origin.0 == "*") {
            AllowOrigin::any()
        } else {
            // Checked origins are ASCII.
            AllowOrigin::list(
                self.origins
                    .iter()
                    .filter_map(|origin| HeaderValue::from_str(&origin.0).ok()),
            )
        };
        // Tokens travel in a header that scripts set, never in cookies, so credentials of the browser aren't allowed.
        Some(
            CorsLayer::new()
                .allow_origin(origins)
                .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
                .allow_headers(
                    [
                        header::AUTHORIZATION,
                        header::CONTENT_TYPE,
                        header::IF_NONE_MATCH,
                        header::IF_RANGE,
                        header::RANGE,
                    ]
                    .into_iter()
                    .chain(
                        [
                            "content-digest",
                            "digest",
                            "repr-digest",
                            "idempotency-key",
                            "last-event-id",
                            "traceparent",
                            "x-request-id",
                        ]
                        .map(HeaderName::from_static),
                    )
                    .collect::<Vec<_>>(),
                )
                .expose_headers(
                    [
                        header::ACCEPT_RANGES,
                        header::CONTENT_RANGE,
                        header::ETAG,
                        header::LOCATION,
                        header::RETRY_AFTER,
                        header::WWW_AUTHENTICATE,
                    ]
                    .into_iter()
                    .chain(["idempotency-replayed", "kiln-coalesced", "x-request-id"].map(HeaderName::from_static))
                    .collect::<Vec<_>>(),
                )
                .max_age(REMEMBERED),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_no_path() {
        for good in ["https://app.example", "http://localhost:3000", "*"] {
            assert!(good.parse::<Origin>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "app.example",
            "https://app.example/",
            "https://app.example/x",
            "https://APP.example",
            "ftp://x",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
