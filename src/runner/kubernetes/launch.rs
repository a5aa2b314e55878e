//! Creating pods, and finding those that exist.

use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    api::{GetParams, PostParams},
    core::Request,
};

use super::{Inner, call::Fault, pod};
use crate::{
    domain::{
        build::Assignment,
        failure::{Failure, FailureCode},
        id::AttemptId,
    },
    runner::{LaunchError, Launched, RunnerError},
};

/// Pauses between tries, where the server names none. Whoever called tries again after that.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// The longest pause that the server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Creates the attempt's pod, or finds it.
pub(super) async fn launch(inner: &Inner, assignment: &Assignment) -> Result<Launched, LaunchError> {
    const ACTION: &str = "creating the pod";
    let attempt = assignment.attempt;
    if inner.index.pod(attempt).is_some() {
        return Ok(Launched {
            name: pod::name(attempt),
            adopted: true,
        });
    }
    let pod = pod::build(&inner.config, &inner.registries, assignment).map_err(LaunchError::Rejected)?;
    let body = serde_json::to_vec(&pod).map_err(|error| RunnerError::new(ACTION, error))?;
    // The semaphore is never closed.
    let _permit = inner.launches.acquire().await.ok();

    // What left it open whether the pod exists, if anything did.
    let mut unclear = None;
    for planned in PAUSES.map(Some).into_iter().chain([None]) {
        let fault = match create_or_find(inner, attempt, &body).await {
            Ok(launched) => return Ok(launched),
            Err(fault) => fault,
        };
        let asked = match fault {
            Fault::Refused(words) => {
                return Err(LaunchError::Rejected(Failure::new(
                    FailureCode::Internal,
                    format!("The cluster refused the build's pod: {words}"),
                )));
            }
            Fault::Unusable(reason) => {
                return Err(match unclear {
                    None => LaunchError::NotReady(reason),
                    Some(_) => RunnerError::new(ACTION, reason).into(),
                });
            }
            Fault::Unclear(reason, asked) => {
                unclear = Some(reason);
                asked
            }
            Fault::Busy(asked) => asked,
            // It was there, and then it wasn't; or a quota was being counted.
            Fault::NotFound | Fault::AlreadyExists | Fault::Conflict => None,
        };
        let Some(planned) = planned.filter(|_| asked.is_none_or(|asked| asked <= MAX_PAUSE)) else {
            break;
        };
        tokio::time::sleep(asked.unwrap_or_else(|| planned.mul_f64(rand::random_range(0.7..1.3)))).await;
    }
    Err(match unclear {
        Some(reason) => RunnerError::new(ACTION, reason).into(),
        None => LaunchError::NotReady("the Kubernetes API is too busy to take pods".to_owned()),
    })
}

async fn create_or_find(inner: &Inner, attempt: AttemptId, body: &[u8]) -> Result<Launched, Fault> {
    let request = inner.connection.pods().create(&PostParams::default(), body.to_vec());
    let (pod, adopted) = match inner.connection.call(request).await {
        Ok(answer) => (read(&answer)?, false),
        Err(Fault::AlreadyExists) => (find(inner, attempt).await?, true),
        Err(fault) => return Err(fault),
    };
    inner.index.launched(attempt, &pod);
    Ok(Launched {
        name: pod::name(attempt),
        adopted,
    })
}

/// The pod that stands in the way of creating one: the attempt's own, from an earlier launch. One that is being
/// deleted counts, too: it is this attempt, and it is observed until its end.
async fn find(inner: &Inner, attempt: AttemptId) -> Result<Pod, Fault> {
    let name = pod::name(attempt);
    let get = |pods: &Request| pods.get(&name, &GetParams::default());
    let pod = match inner.connection.call_again(get).await {
        Ok(answer) => read(&answer)?,
        // A pod exists, so it can't be said that nothing was created.
        Err(Fault::Unusable(reason)) => return Err(Fault::Unclear(reason, None)),
        Err(fault) => return Err(fault),
    };
    if !pod::is_ours(&pod, &inner.config.installation, attempt) {
        return Err(Fault::Refused(format!(
            "a pod named {name} is there that isn't this installation's. Delete it, or give every installation in the namespace its own `kubernetes.installation`."
        )));
    }
    Ok(pod)
}

fn read(answer: &Bytes) -> Result<Pod, Fault> {
    serde_json::from_slice(answer).map_err(|error| Fault::Unclear(format!("the answer can't be read: {error}"), None))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{
        domain::spec::Builder,
        runner::{
            Observation, Readiness,
            builder::tests::assignment,
            kubernetes::stub::{Answer, Stub, answer, pod_json, silence, status},
        },
    };

    fn attempt() -> AttemptId {
        assignment(Builder::Buildkit).attempt
    }

    fn created() -> Answer {
        answer(201, &pod_json(attempt(), "default", &json!({"phase": "Pending"})))
    }

    fn exists() -> Answer {
        status(409, "AlreadyExists", "pods \"x\" already exists", "pods")
    }

    fn get() -> String {
        format!("GET pods/{}", pod::name(attempt()))
    }

    async fn launched(stub: &Stub) -> (Arc<Inner>, Result<Launched, LaunchError>) {
        let inner = stub.inner();
        let result = launch(&inner, &assignment(Builder::Buildkit)).await;
        assert!(stub.is_done(), "{result:?} after {:?}", stub.seen());
        (inner, result)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_created_and_known() {
        let stub = Stub::default();
        stub.expect("POST pods", created());
        let (inner, result) = launched(&stub).await;
        assert_eq!(
            result.unwrap(),
            Launched {
                name: pod::name(attempt()),
                adopted: false
            }
        );
        assert!(matches!(
            &*inner.index.observe(attempt()).borrow(),
            Observation::Pending { .. }
        ));
        let (_, body) = &stub.seen()[0];
        assert_eq!(body["metadata"]["name"], pod::name(attempt()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_attempts_own_pod_is_adopted() {
        let stub = Stub::default();
        let found = answer(
            200,
            &pod_json(attempt(), "default", &json!({"phase": "Failed", "reason": "Evicted"})),
        );
        stub.expect("POST pods", exists()).expect(get(), found);
        let (inner, result) = launched(&stub).await;
        assert!(result.unwrap().adopted);
        assert!(matches!(
            &*inner.index.observe(attempt()).borrow(),
            Observation::Finished { .. }
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_watch_has_shown_is_not_asked_for() {
        let stub = Stub::default();
        let inner = stub.inner();
        let pod = pod_json(attempt(), "default", &json!({"phase": "Running"}));
        inner.index.apply(&serde_json::from_value(pod).unwrap());
        let launched = launch(&inner, &assignment(Builder::Buildkit)).await.unwrap();
        assert!(launched.adopted);
        assert_eq!(stub.seen(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_strangers_pod_is_not() {
        let stub = Stub::default();
        let found = answer(200, &pod_json(attempt(), "staging", &json!({"phase": "Pending"})));
        stub.expect("POST pods", exists()).expect(get(), found);
        let (_, result) = launched(&stub).await;
        assert!(
            matches!(result, Err(LaunchError::Rejected(failure)) if failure.message.contains("kubernetes.installation"))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_vanishes_in_between_is_created() {
        let stub = Stub::default();
        let missing = status(404, "NotFound", "pods \"x\" not found", "pods");
        stub.expect("POST pods", exists())
            .expect(get(), missing)
            .expect("POST pods", created());
        let (_, result) = launched(&stub).await;
        assert!(!result.unwrap().adopted);
    }

    #[tokio::test(start_paused = true)]
    async fn what_needs_a_person_is_said_at_once() {
        let stub = Stub::default();
        stub.expect(
            "POST pods",
            status(404, "NotFound", "namespaces \"builds\" not found", "namespaces"),
        );
        let (inner, result) = launched(&stub).await;
        assert!(matches!(result, Err(LaunchError::NotReady(reason)) if reason.contains("kubectl create namespace")));
        let readiness = inner.connection.readiness();
        assert!(
            matches!(&*readiness.borrow(), Readiness::NotReady(reason) if reason.contains("kubectl create namespace"))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_server_is_given_the_time_it_asks_for() {
        let busy = || {
            let mut busy = answer(429, &json!("Too many requests, please try again later."));
            busy.headers_mut().insert("retry-after", "7".parse().unwrap());
            busy
        };
        let stub = Stub::default();
        stub.expect("POST pods", busy())
            .expect("POST pods", busy())
            .expect("POST pods", created());
        let begun = tokio::time::Instant::now();
        let (_, result) = launched(&stub).await;
        assert!(result.is_ok());
        assert_eq!(begun.elapsed().as_secs(), 14);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stays_busy_has_taken_nothing() {
        let stub = Stub::default();
        for _ in 0..=PAUSES.len() {
            stub.expect("POST pods", answer(429, &json!(null)));
        }
        let (_, result) = launched(&stub).await;
        assert!(matches!(result, Err(LaunchError::NotReady(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn once_it_is_unclear_it_stays_unclear() {
        let stub = Stub::default();
        stub.expect(
            "POST pods",
            status(500, "InternalError", "etcdserver: request timed out", ""),
        )
        .expect("POST pods", status(401, "Unauthorized", "Unauthorized", ""));
        let (_, result) = launched(&stub).await;
        assert!(matches!(result, Err(LaunchError::Unknown(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_is_unclear_too() {
        let stub = Stub::default();
        for _ in 0..=PAUSES.len() {
            stub.expect("POST pods", silence());
        }
        let (_, result) = launched(&stub).await;
        assert!(matches!(result, Err(LaunchError::Unknown(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_not_valid_is_rejected_in_the_servers_words() {
        let stub = Stub::default();
        stub.expect(
            "POST pods",
            status(422, "Invalid", "Pod \"x\" is invalid: spec.nodeSelector: bad", "Pod"),
        );
        let (_, result) = launched(&stub).await;
        assert!(matches!(result, Err(LaunchError::Rejected(failure)) if failure.message.contains("spec.nodeSelector")));
    }
}
