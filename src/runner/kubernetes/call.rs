//! One request to the Kubernetes API, and what its failure means for whoever made it.

use std::{error::Error as StdError, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt;
use kube::{Client, client::Body, core::Status};

use super::gate;

/// The longest that one request may take. Admission webhooks have 10 s each by default.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// Why a request was not answered as it should be.
#[derive(Debug)]
pub(super) enum Fault {
    /// Nothing was done, and nothing can be until someone changes something: what, says the text.
    Unusable(String),
    /// Nothing was done; it can be tried again, after this time if the server has named one.
    Busy(Option<Duration>),
    /// It may have been done or not; it can be tried again, after this time if the server has named one.
    Unclear(String, Option<Duration>),
    /// The object isn't there.
    NotFound,
    /// An object of that name is there.
    AlreadyExists,
    /// The object is another one than was meant, or was changed in between.
    Conflict,
    /// The server wants nothing of it: its words.
    Refused(String),
}

impl Fault {
    /// The fault as the source of an error, for the log.
    pub(super) fn into_source(self) -> Box<dyn StdError + Send + Sync> {
        match self {
            Self::Unusable(text) | Self::Unclear(text, _) | Self::Refused(text) => text.into(),
            Self::Busy(_) => "the API server is busy".into(),
            Self::NotFound => "not found".into(),
            Self::AlreadyExists => "an object of that name exists".into(),
            Self::Conflict => "the object is another one, or was changed in between".into(),
        }
    }
}

/// What requests are about, for messages.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// URL of the API server.
    pub(super) server: &'a str,
    /// Namespace of the build pods.
    pub(super) namespace: &'a str,
}

/// Sends a request and gives the body of its answer.
pub(super) async fn call(
    client: &Client,
    place: Place<'_>,
    request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<Bytes, Fault> {
    let request = request.map_err(|error| Fault::Refused(error.to_string()))?;
    let exchange = async {
        let response = client
            .send(request.map(Body::from))
            .await
            .map_err(|error| transport(place.server, &error))?;
        let (head, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| transport(place.server, &error))?
            .to_bytes();
        if head.status.is_success() {
            return Ok(body);
        }
        let retry_after = gate::retry_after(&head.headers);
        Err(refusal(place.namespace, head.status.as_u16(), retry_after, &body))
    };
    tokio::time::timeout(LIMIT, exchange)
        .await
        .unwrap_or_else(|_| Err(Fault::Unclear(format!("no answer within {} s", LIMIT.as_secs()), None)))
}

/// What an answer that isn't a success means.
pub(super) fn refusal(namespace: &str, code: u16, retry_after: Option<Duration>, body: &[u8]) -> Fault {
    // Proxies, and the API server itself when it sheds load, answer in plain text.
    let status: Status =
        serde_json::from_slice(body).unwrap_or_else(|_| Status::failure(String::from_utf8_lossy(body).trim(), ""));
    let details = status.details.as_ref();
    let retry_after = retry_after.or_else(|| {
        let seconds = details.map(|details| details.retry_after_seconds)?;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    });
    let message = status.message;
    match code {
        401 => Fault::Unusable(format!(
            "the Kubernetes API doesn't accept the service's credentials ({message}). Renew the token or certificate in the kubeconfig."
        )),
        403 if message.contains("violates PodSecurity") => Fault::Unusable(format!(
            "namespace `{namespace}` doesn't admit build pods ({message}). Label it: kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged --overwrite"
        )),
        403 if message.contains("exceeded quota") => {
            Fault::Unusable(format!("the quota of namespace `{namespace}` is used up ({message})"))
        }
        403 if message.contains("admission webhook") => Fault::Refused(message),
        403 => Fault::Unusable(format!(
            "the Kubernetes API doesn't let the service work in namespace `{namespace}` ({message}). Check that the namespace exists and grant the role in deploy/rbac."
        )),
        404 if details.is_some_and(|details| details.kind == "namespaces") => Fault::Unusable(format!(
            "namespace `{namespace}` doesn't exist. Create it with `kubectl create namespace {namespace}`, or set kubernetes.namespace (KILN_NAMESPACE)."
        )),
        404 if details.is_none() => Fault::Unusable(format!(
            "what answers isn't a Kubernetes API ({message}). Check the server in the kubeconfig."
        )),
        404 => Fault::NotFound,
        409 if status.reason == "AlreadyExists" => Fault::AlreadyExists,
        409 => Fault::Conflict,
        429 => Fault::Busy(retry_after),
        500..=599 => Fault::Unclear(format!("{code}: {message}"), retry_after),
        _ => Fault::Refused(message),
    }
}

/// What an exchange that broke off means.
pub(super) fn transport(server: &str, error: &kube::Error) -> Fault {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    let mut connecting = false;
    let mut root = error.to_string();
    while let Some(error) = source {
        connecting |= error
            .downcast_ref::<hyper_util::client::legacy::Error>()
            .is_some_and(hyper_util::client::legacy::Error::is_connect);
        root = error.to_string();
        source = error.source();
    }
    match error {
        _ if connecting => Fault::Unusable(format!(
            "the Kubernetes API at {server} can't be reached ({root}). Check the server in the kubeconfig and that it runs."
        )),
        kube::Error::Auth(_) => Fault::Unusable(format!("the credentials in the kubeconfig can't be used ({root}).")),
        _ => Fault::Unclear(root, None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(code: u16, reason: &str, message: &str, kind: &str) -> String {
        json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": message, "details": {"kind": kind},
        })
        .to_string()
    }

    #[test]
    fn answers_that_someone_must_change_something_for() {
        for (code, body, words) in [
            (401, status(401, "Unauthorized", "Unauthorized", ""), "Renew the token"),
            (
                403,
                status(
                    403,
                    "Forbidden",
                    "pods is forbidden: User \"x\" cannot create resource \"pods\" in API group \"\" in the namespace \"builds\"",
                    "pods",
                ),
                "deploy/rbac",
            ),
            (
                403,
                status(
                    403,
                    "Forbidden",
                    "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": seccompProfile",
                    "pods",
                ),
                "kubectl label namespace builds",
            ),
            (
                403,
                status(
                    403,
                    "Forbidden",
                    "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5",
                    "pods",
                ),
                "quota of namespace `builds`",
            ),
            (
                404,
                status(404, "NotFound", "namespaces \"builds\" not found", "namespaces"),
                "kubectl create namespace builds",
            ),
            (404, "<html>nginx</html>".to_owned(), "isn't a Kubernetes API"),
        ] {
            match refusal("builds", code, None, body.as_bytes()) {
                Fault::Unusable(text) => assert!(text.contains(words), "{words} is not in: {text}"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn answers_that_can_be_tried_again() {
        let busy = refusal(
            "builds",
            429,
            Some(Duration::from_secs(3)),
            b"Too many requests, please try again later.\n",
        );
        assert!(matches!(busy, Fault::Busy(Some(after)) if after.as_secs() == 3));
        let body = json!({"message": "storage is re-initializing", "details": {"retryAfterSeconds": 2}}).to_string();
        let busy = refusal("builds", 429, None, body.as_bytes());
        assert!(matches!(busy, Fault::Busy(Some(after)) if after.as_secs() == 2));
        let conflict = status(
            409,
            "Conflict",
            "Operation cannot be fulfilled on resourcequotas",
            "resourcequotas",
        );
        assert!(matches!(
            refusal("builds", 409, None, conflict.as_bytes()),
            Fault::Conflict
        ));
        let unclear = status(500, "InternalError", "etcdserver: request timed out", "");
        assert!(matches!(
            refusal("builds", 500, None, unclear.as_bytes()),
            Fault::Unclear(..)
        ));
    }

    #[test]
    fn answers_about_the_object_itself() {
        let exists = status(409, "AlreadyExists", "pods \"x\" already exists", "pods");
        assert!(matches!(
            refusal("builds", 409, None, exists.as_bytes()),
            Fault::AlreadyExists
        ));
        let missing = status(404, "NotFound", "pods \"x\" not found", "pods");
        assert!(matches!(
            refusal("builds", 404, None, missing.as_bytes()),
            Fault::NotFound
        ));
        for (code, message) in [
            (422, "Pod \"x\" is invalid: spec.containers[0].image: Required value"),
            (403, "admission webhook \"policy.example\" denied the request: no"),
        ] {
            let body = status(code, "Invalid", message, "Pod");
            match refusal("builds", code, None, body.as_bytes()) {
                Fault::Refused(text) => assert_eq!(text, message),
                other => panic!("{other:?}"),
            }
        }
    }
}
