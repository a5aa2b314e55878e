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
    // that they don't is worth waiting for, unless it doesn't come.
    let overdue = handle.deleting.is_some_and(|since| Utc::now() - since > PATIENCE);
    let grace = u32::from(!handle.finished && !overdue);
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
