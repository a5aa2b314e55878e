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
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(4000),
];

/// The longest pause that the server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Creates the attempt's pod, or finds it.
pub(super) async fn launch(inner: &Inner, assignment: &Assignment) -> Result<Launched, LaunchError> {
    const ACTION: &str = "creating the pod";
    let attempt = assignment.attempt;
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
