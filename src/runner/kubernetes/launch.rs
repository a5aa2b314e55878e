//! Creating pods, and finding those that exist.

use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    api::{DeleteParams, GetParams, PostParams},
    core::Request,
};
use zeroize::Zeroizing;

use super::{Inner, call::Fault, index::Handle, pod};
use crate::{
    domain::{
        build::Assignment,
        failure::{Failure, FailureCode},
        id::AttemptId,
    },
    runner::{
        LaunchError, Launched, RunnerError,
        builder::credentials::{self, CredentialFiles},
    },
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
    let files = credentials::files(&assignment.credentials);
    if let Some(pod) = inner.index.pod(attempt) {
        deliver(inner, assignment, &pod, &files).await?;
        return Ok(Launched {
            name: pod::name(attempt),
            adopted: true,
        });
    }
    let pod = pod::build(&inner.config, &inner.registries, assignment, &files).map_err(LaunchError::Rejected)?;
    let body = serde_json::to_vec(&pod).map_err(|error| RunnerError::new(ACTION, error))?;
    // The semaphore is never closed.
    let _permit = inner.launches.acquire().await.ok();

    // What left it open whether the pod exists, if anything did.
    let mut unclear = None;
    for planned in PAUSES.map(Some).into_iter().chain([None]) {
        let fault = match create_or_find(inner, attempt, &body).await {
            Ok((launched, pod)) => {
                deliver(inner, assignment, &pod, &files).await?;
                return Ok(launched);
            }
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

/// Sees to it that the pod finds its credentials. The kubelet waits for them; once a step has begun, they are there.
///
/// What is in the way is made anew: it may belong to a pod of that name which is gone, and go with it any moment. So
/// the service needs no right to read Secrets.
async fn deliver(
    inner: &Inner,
    assignment: &Assignment,
    pod: &Handle,
    files: &CredentialFiles,
) -> Result<(), RunnerError> {
    const ACTION: &str = "creating the Secret with the build's credentials";
    let attempt = assignment.attempt;
    let begun = !inner.index.observe(attempt).borrow().steps().is_empty();
    if files.is_empty() || begun || pod.finished {
        return Ok(());
    }
    let failed = |fault: Fault| RunnerError::new(ACTION, fault.into_source());
    let secret = pod::secret(&inner.config, assignment, &pod.uid, files);
    let body = Zeroizing::new(serde_json::to_vec(&secret).map_err(|error| RunnerError::new(ACTION, error))?);
    let connection = &inner.connection;
    let create = || connection.secrets().create(&PostParams::default(), body.to_vec());
    match connection.call(create()).await {
        Ok(_) => return Ok(()),
        Err(Fault::AlreadyExists) => {}
        Err(fault) => return Err(failed(fault)),
    }
    let delete = connection
        .secrets()
        .delete(&pod::name(attempt), &DeleteParams::default());
    match connection.call(delete).await {
        Ok(_) | Err(Fault::NotFound) => {}
        Err(fault) => return Err(failed(fault)),
    }
    connection.call(create()).await.map(drop).map_err(failed)
}

async fn create_or_find(inner: &Inner, attempt: AttemptId, body: &[u8]) -> Result<(Launched, Handle), Fault> {
    let request = inner.connection.pods().create(&PostParams::default(), body.to_vec());
    let (pod, adopted) = match inner.connection.call(request).await {
        Ok(answer) => (read(&answer)?, false),
        Err(Fault::AlreadyExists) => (find(inner, attempt).await?, true),
        Err(fault) => return Err(fault),
    };
    inner.index.launched(attempt, &pod);
    let launched = Launched {
        name: pod::name(attempt),
        adopted,
    };
    Ok((launched, Handle::of(&pod)))
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
        domain::{
            secret::{GitCredentials, SecretBytes, SecretText},
            spec::Builder,
        },
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

    /// An attempt that logs in somewhere.
    fn with_secrets() -> Assignment {
        let mut assignment = assignment(Builder::Buildkit);
        let value = SecretBytes::new("hunter2");
        assignment.credentials.secrets = [("npm".parse().unwrap(), value)].into();
        assignment.credentials.source = Some(GitCredentials::Token(SecretText::new("t0k3n")));
        assignment
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_come_after_the_pod_and_belong_to_it() {
        let stub = Stub::default();
        stub.expect("POST pods", created())
            .expect("POST secrets", answer(201, &json!({})));
        let inner = stub.inner();
        assert!(!launch(&inner, &with_secrets()).await.unwrap().adopted);
        let seen = stub.seen();
        let [(_, pod), (_, secret)] = seen.as_slice() else {
            panic!("a pod and a Secret, not {seen:?}");
        };
        assert_eq!(secret["metadata"]["name"], pod::name(attempt()));
        assert_eq!(
            secret["metadata"]["ownerReferences"],
            json!([{"apiVersion": "v1", "kind": "Pod", "name": pod::name(attempt()), "uid": "uid-1"}])
        );
        assert_eq!(secret["data"]["secret-0"], "aHVudGVyMg==");
        // Each container mounts the volume with its own files, and nothing secret is in the pod.
        let volumes = |container: &serde_json::Value| {
            let mounts = container["volumeMounts"].as_array().unwrap().clone();
            mounts
                .into_iter()
                .filter_map(|mount| {
                    let name = mount["name"].as_str()?.to_owned();
                    name.ends_with("-credentials").then_some(name)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(volumes(&pod["spec"]["initContainers"][0]), ["source-credentials"]);
        assert_eq!(volumes(&pod["spec"]["containers"][0]), ["build-credentials"]);
        let all = pod["spec"]["volumes"].as_array().unwrap();
        let files = |name: &str| {
            let volume = all.iter().find(|volume| volume["name"] == name).unwrap();
            let items = volume["secret"]["items"].as_array().unwrap().clone();
            items
                .into_iter()
                .map(|item| item["key"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(files("source-credentials"), ["git-username", "git-password"]);
        assert_eq!(files("build-credentials"), ["secret-0"]);
        let text = pod.to_string();
        assert!(!text.contains("hunter2") && !text.contains("t0k3n") && !text.contains("aHVudGVyMg"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_between_pod_and_credentials_is_made_good() {
        let stub = Stub::default();
        let found = answer(200, &pod_json(attempt(), "default", &json!({"phase": "Pending"})));
        let taken = || status(409, "AlreadyExists", "secrets \"x\" already exists", "secrets");
        stub.expect("POST pods", exists())
            .expect(get(), found)
            .expect("POST secrets", answer(201, &json!({})))
            // The next launch can't know whose the Secret is.
            .expect("POST secrets", taken())
            .expect(
                format!("DELETE secrets/{}", pod::name(attempt())),
                answer(200, &json!({})),
            )
            .expect("POST secrets", answer(201, &json!({})));
        let inner = stub.inner();
        for _ in 0..2 {
            assert!(launch(&inner, &with_secrets()).await.unwrap().adopted);
        }
        assert!(stub.is_done(), "{:?}", stub.seen());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_whose_steps_have_begun_needs_no_more() {
        let stub = Stub::default();
        let inner = stub.inner();
        let status = json!({"phase": "Pending", "initContainerStatuses": [{
            "name": "source", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-11-23T14:00:05Z"}},
        }]});
        let pod = pod_json(attempt(), "default", &status);
        inner.index.apply(&serde_json::from_value(pod).unwrap());
        assert!(launch(&inner, &with_secrets()).await.unwrap().adopted);
        assert_eq!(stub.seen(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_cannot_be_delivered_leave_it_open() {
        let stub = Stub::default();
        let forbidden = "secrets is forbidden: User \"x\" cannot create resource \"secrets\"";
        stub.expect("POST pods", created())
            .expect("POST secrets", status(403, "Forbidden", forbidden, "secrets"));
        let inner = stub.inner();
        let result = launch(&inner, &with_secrets()).await;
        assert!(matches!(result, Err(LaunchError::Unknown(_))), "{result:?}");
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
