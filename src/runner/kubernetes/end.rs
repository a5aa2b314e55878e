//! Stopping attempts and removing what is left of them.

use chrono::Utc;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    api::{DeleteParams, GetParams, Patch, PatchParams, Preconditions},
    core::Request,
};
use serde_json::json;

use super::{Inner, call::Fault, index::Handle, pod};
use crate::{domain::id::AttemptId, runner::RunnerError};

/// A node that hasn't ended a pod this long after it was told to is taken for lost.
const PATIENCE: chrono::TimeDelta = chrono::TimeDelta::seconds(15);

/// Tells the attempt to stop.
///
/// Deleting the pod would do that, but its log and its report would go with it. Instead its deadline is set to have
/// passed: the kubelet ends the containers just the same, SIGTERM first, and the pod stays until it is removed. Where
/// there is no kubelet yet, there is nothing to lose, and the pod is deleted.
pub(super) async fn stop(inner: &Inner, attempt: AttemptId) -> Result<(), RunnerError> {
    const ACTION: &str = "stopping the pod";
    let Some(handle) = handle(inner, attempt)
        .await
        .map_err(|fault| RunnerError::new(ACTION, fault.into_source()))?
    else {
        return Ok(());
    };
    if handle.finished || handle.deleting.is_some() {
        return Ok(());
    }
    let done = if handle.scheduled {
        let patch = json!({
            "metadata": {"uid": handle.uid, "annotations": {pod::STOPPED: "true"}},
            "spec": {"activeDeadlineSeconds": 1},
        });
        let name = pod::name(attempt);
        let patch = |pods: &Request| pods.patch(&name, &PatchParams::default(), &Patch::Merge(&patch));
        inner.connection.call_again(patch).await.map(drop)
    } else {
        delete(inner, attempt, &handle, None).await
    };
    settle(ACTION, done)
}

/// Removes the attempt's pod, running or not.
pub(super) async fn remove(inner: &Inner, attempt: AttemptId) -> Result<(), RunnerError> {
    const ACTION: &str = "deleting the pod";
    let Some(handle) = handle(inner, attempt)
        .await
        .map_err(|fault| RunnerError::new(ACTION, fault.into_source()))?
    else {
        return Ok(());
    };
    // With a grace period of 0 the pod is forgotten at once. Where its containers may still run, the kubelet's word
    // that they don't is worth waiting for, unless it doesn't come. Either is sooner than the pod's own grace period.
    let overdue = handle.deleting.is_some_and(|since| Utc::now() - since > PATIENCE);
    let idle = handle.finished && !handle.running;
    let grace = u32::from(!idle && !overdue);
    settle(ACTION, delete(inner, attempt, &handle, Some(grace)).await)
}

async fn delete(inner: &Inner, attempt: AttemptId, handle: &Handle, grace: Option<u32>) -> Result<(), Fault> {
    let params = DeleteParams {
        grace_period_seconds: grace,
        preconditions: Some(Preconditions {
            resource_version: None,
            uid: Some(handle.uid.clone()),
        }),
        ..DeleteParams::default()
    };
    let name = pod::name(attempt);
    inner
        .connection
        .call_again(|pods| pods.delete(&name, &params))
        .await
        .map(drop)
}

/// The attempt's pod, from the index or else from the API; `None` when there is none.
async fn handle(inner: &Inner, attempt: AttemptId) -> Result<Option<Handle>, Fault> {
    if let Some(handle) = inner.index.pod(attempt) {
        return Ok(Some(handle));
    }
    let name = pod::name(attempt);
    let get = |pods: &Request| pods.get(&name, &GetParams::default());
    let pod: Pod = match inner.connection.call_again(get).await {
        Ok(answer) => serde_json::from_slice(&answer).map_err(|error| Fault::Unclear(error.to_string(), None))?,
        Err(Fault::NotFound) => return Ok(None),
        Err(fault) => return Err(fault),
    };
    Ok(pod::is_ours(&pod, &inner.config.installation, attempt).then(|| Handle::of(&pod)))
}

/// What is gone needs no ending, and a pod of another uid isn't meant.
fn settle(action: &'static str, done: Result<(), Fault>) -> Result<(), RunnerError> {
    match done {
        Ok(()) | Err(Fault::NotFound | Fault::Conflict) => Ok(()),
        Err(fault) => Err(RunnerError::new(action, fault.into_source())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::{
        domain::spec::Builder,
        runner::{
            builder::tests::assignment,
            kubernetes::stub::{Stub, answer, pod_json, status},
        },
    };

    fn attempt() -> AttemptId {
        assignment(Builder::Buildkit).attempt
    }

    fn path() -> String {
        format!("pods/{}", pod::name(attempt()))
    }

    /// A runner that has seen the attempt's pod like this.
    fn seen(stub: &Stub, change: impl FnOnce(&mut Value)) -> Arc<Inner> {
        let mut pod = pod_json(attempt(), "default", &json!({"phase": "Running"}));
        change(&mut pod);
        let inner = stub.inner();
        inner.index.apply(&serde_json::from_value(pod).unwrap());
        inner
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_keeps_the_pod() {
        let stub = Stub::default();
        stub.expect(format!("PATCH {}", path()), answer(200, &json!({})));
        let inner = seen(&stub, |_| {});
        stop(&inner, attempt()).await.unwrap();
        let (_, body) = &stub.seen()[0];
        assert_eq!(body["spec"]["activeDeadlineSeconds"], 1);
        assert_eq!(body["metadata"]["uid"], "uid-1");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_no_node_is_deleted_by_its_uid() {
        let stub = Stub::default();
        stub.expect(format!("DELETE {}", path()), answer(200, &json!({})));
        let inner = seen(&stub, |pod| pod["spec"]["nodeName"] = Value::Null);
        stop(&inner, attempt()).await.unwrap();
        let (_, body) = &stub.seen()[0];
        assert_eq!(body["preconditions"]["uid"], "uid-1");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_ended_need_not_be_stopped() {
        let stub = Stub::default();
        let inner = seen(&stub, |pod| pod["status"] = json!({"phase": "Failed"}));
        stop(&inner, attempt()).await.unwrap();
        assert!(stub.seen().is_empty());
    }

    /// The build has ended, what pushes its log has not.
    fn with_sidecar() -> Value {
        let container = |name: &str, state: Value| {
            json!({
                "name": name, "image": "x", "imageID": "", "ready": true, "restartCount": 0, "state": state,
            })
        };
        let report = json!({"exit": {"code": 0}, "lines": 0, "bytes": 0, "tail": ""}).to_string();
        let ended = json!({"terminated": {"exitCode": 0, "message": report}});
        json!({
            "phase": "Running",
            "initContainerStatuses": [container("ship", json!({"running": {}}))],
            "containerStatuses": [container("build", ended)],
        })
    }

    #[tokio::test(start_paused = true)]
    async fn removing_waits_for_the_kubelet_only_as_long_as_makes_sense() {
        for (field, value, grace) in [
            ("/status/phase", json!("Running"), 1),
            ("/status/phase", json!("Failed"), 0),
            ("/status", with_sidecar(), 1),
            ("/metadata/deletionTimestamp", json!("2026-11-23T14:00:00Z"), 0),
        ] {
            let stub = Stub::default();
            stub.expect(format!("DELETE {}", path()), answer(200, &json!({})));
            let inner = seen(&stub, |pod| {
                pod["metadata"]["deletionTimestamp"] = Value::Null;
                *pod.pointer_mut(field).unwrap() = value;
            });
            remove(&inner, attempt()).await.unwrap();
            let (_, body) = &stub.seen()[0];
            assert_eq!(body["gracePeriodSeconds"], grace);
            assert_eq!(body["preconditions"]["uid"], "uid-1");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_never_seen_is_looked_up() {
        let stub = Stub::default();
        let pod = pod_json(attempt(), "default", &json!({"phase": "Failed"}));
        stub.expect(format!("GET {}", path()), answer(200, &pod))
            .expect(format!("DELETE {}", path()), answer(200, &json!({})));
        remove(&stub.inner(), attempt()).await.unwrap();
        assert!(stub.is_done());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_or_another_is_left_alone() {
        let missing = || status(404, "NotFound", "pods \"x\" not found", "pods");
        let stub = Stub::default();
        stub.expect(format!("GET {}", path()), missing());
        remove(&stub.inner(), attempt()).await.unwrap();

        for refusal in [
            missing(),
            status(409, "Conflict", "the UID in the precondition does not match", "pods"),
        ] {
            let stub = Stub::default();
            stub.expect(format!("DELETE {}", path()), refusal);
            let inner = seen(&stub, |_| {});
            remove(&inner, attempt()).await.unwrap();
        }

        let stub = Stub::default();
        let strangers = pod_json(attempt(), "staging", &json!({"phase": "Running"}));
        stub.expect(format!("GET {}", path()), answer(200, &strangers));
        remove(&stub.inner(), attempt()).await.unwrap();
        assert_eq!(stub.seen().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_fails_is_asked_again_and_then_named() {
        let stub = Stub::default();
        for _ in 0..3 {
            stub.expect(format!("PATCH {}", path()), status(500, "InternalError", "boom", ""));
        }
        let inner = seen(&stub, |_| {});
        let error = stop(&inner, attempt()).await.unwrap_err();
        assert!(error.source.to_string().contains("boom"));
        assert!(stub.is_done());
    }
}
