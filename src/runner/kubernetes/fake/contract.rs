//! What the runner relies on of an API server. `tests/cluster` runs the same against a real one, so this knows nothing
//! of the crate around it.

use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Error,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams},
};
use serde_json::json;

const DEADLINE: Duration = Duration::from_mins(1);

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> (u16, String) {
    match result {
        Err(Error::Api(status)) => (status.code, status.reason.clone()),
        other => panic!("expected a refusal, not {other:?}"),
    }
}

/// A pod that no node takes.
fn pod(name: &str, label: &str) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"kiln-contract": label}},
        "spec": {"nodeSelector": {"kiln-contract": "nowhere"}, "containers": [{"name": "build", "image": "none"}]},
    }))
    .expect("a pod")
}

/// Waits for an event of the pod.
async fn event(
    watch: &mut (impl Stream<Item = Result<WatchEvent<Pod>, Error>> + Unpin),
    what: &str,
    wanted: impl Fn(&WatchEvent<Pod>) -> bool,
) {
    let found = async {
        while let Some(event) = watch.try_next().await.expect("a watch goes on") {
            if wanted(&event) {
                return true;
            }
        }
        false
    };
    let found = tokio::time::timeout(DEADLINE, found).await;
    assert!(found.unwrap_or(false), "no such event: {what}");
}

/// Checks all of it. Names begin with `prefix`, which nothing else in the namespace has.
pub(crate) async fn check(client: Client, namespace: &str, prefix: &str) {
    let api: Api<Pod> = Api::namespaced(client, namespace);
    let named = |name: &str| format!("{prefix}-{name}");
    let params = PostParams::default();
    let ours = ListParams::default().labels(&format!("kiln-contract={prefix}"));
    let empty = api.list(&ours).await.expect("lists");
    assert!(empty.items.is_empty());
    let begin = empty.metadata.resource_version.expect("a version");

    // A name is taken once, and each pod has an identity and a version.
    let first = api.create(&params, &pod(&named("a"), prefix)).await.expect("creates");
    let again = api.create(&params, &pod(&named("a"), prefix)).await;
    assert_eq!(code(again), (409, "AlreadyExists".to_owned()));
    let missing = api.get(&named("none")).await;
    assert_eq!(code(missing), (404, "NotFound".to_owned()));
    let uid = first.metadata.uid.expect("an identity");
    let version = |pod: &Pod| -> u64 {
        let version = pod.metadata.resource_version.as_deref();
        version.expect("a version").parse().expect("a number")
    };
    let created = version(&api.get(&named("a")).await.expect("is there"));

    // Changes and deletions can be meant for one pod and no other of its name.
    let patch = |uid: &str| json!({"metadata": {"uid": uid, "annotations": {"kiln.build/stopped": "true"}}});
    let other = "00000000-0000-0000-0000-000000000000";
    let (name, as_is) = (named("a"), PatchParams::default());
    let (wrong, right) = (Patch::Merge(patch(other)), Patch::Merge(patch(&uid)));
    let refused = api.patch(&name, &as_is, &wrong).await;
    assert_eq!(code(refused), (422, "Invalid".to_owned()));
    let patched = api.patch(&name, &as_is, &right).await.expect("patches");
    assert!(version(&patched) > created, "versions grow");
    let delete = |uid: &str| DeleteParams {
        grace_period_seconds: Some(1),
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let deleted = api.delete(&named("a"), &delete(other)).await;
    assert_eq!(code(deleted.map(drop)), (409, "Conflict".to_owned()));
    // What has no node is gone at once.
    api.delete(&named("a"), &delete(&uid)).await.expect("deletes");
    assert_eq!(code(api.get(&named("a")).await).0, 404);

    // A watch tells everything since a version, in order.
    let params_of_watch = WatchParams::default().labels(&format!("kiln-contract={prefix}"));
    let mut watch = api.watch(&params_of_watch, &begin).await.expect("watches").boxed();
    let ours_is = |pod: &Pod| pod.metadata.name.as_deref() == Some(&named("a"));
    event(
        &mut watch,
        "added",
        |event| matches!(event, WatchEvent::Added(pod) if ours_is(pod)),
    )
    .await;
    event(
        &mut watch,
        "modified",
        |event| matches!(event, WatchEvent::Modified(pod) if ours_is(pod) && pod.metadata.annotations.is_some()),
    )
    .await;
    event(
        &mut watch,
        "deleted",
        |event| matches!(event, WatchEvent::Deleted(pod) if ours_is(pod)),
    )
    .await;
    // And goes on with what happens now, of what it was asked for.
    for (name, label) in [("b", prefix), ("c", "other"), ("d", prefix), ("e", prefix)] {
        api.create(&params, &pod(&named(name), label)).await.expect("creates");
    }
    let next = |wanted: &'static str| {
        let (wanted, stray) = (named(wanted), named("c"));
        move |event: &WatchEvent<Pod>| {
            let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else {
                return false;
            };
            assert_ne!(pod.metadata.name.as_deref(), Some(stray.as_str()), "another label");
            pod.metadata.name.as_deref() == Some(wanted.as_str())
        }
    };
    event(&mut watch, "b", next("b")).await;
    event(&mut watch, "e", next("e")).await;

    // A version that is long past is refused as such.
    let past = match api.watch(&params_of_watch, "1").await {
        Ok(watch) => watch.boxed().try_next().await,
        Err(error) => Err(error),
    };
    match past {
        Ok(Some(WatchEvent::Error(status))) => assert_eq!(status.code, 410),
        other => assert_eq!(code(other).0, 410),
    }

    // Listings come in pages.
    let page = api.list(&ours.clone().limit(2)).await.expect("lists");
    assert_eq!(page.items.len(), 2);
    let next = page.metadata.continue_.expect("there is more");
    let rest = api
        .list(&ours.clone().limit(2).continue_token(&next))
        .await
        .expect("lists");
    assert_eq!(rest.items.len(), 1);
    assert_eq!(rest.metadata.continue_.unwrap_or_default(), "");

    for name in ["b", "c", "d", "e"] {
        api.delete(&named(name), &DeleteParams::default())
            .await
            .expect("deletes");
    }
}
