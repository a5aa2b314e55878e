//! The pods of an installation, recorded from before its first build by a watch of the tests' own.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, EvictParams, ListParams, WatchEvent, WatchParams},
};
use tokio_util::task::AbortOnDropHandle;

use super::eventually;

/// Build by UID: two pods of one name are two.
type Seen = Arc<Mutex<BTreeMap<String, String>>>;

/// All pods that an installation ever had.
pub(in crate::cluster) struct Pods {
    api: Api<Pod>,
    namespace: String,
    selector: String,
    seen: Seen,
    watch: AbortOnDropHandle<()>,
}

impl Pods {
    /// Begins to record. The namespace need not exist yet.
    pub(super) async fn record(client: Client, namespace: &str, installation: &str) -> Self {
        let api: Api<Pod> = Api::namespaced(client, namespace);
        let selector = format!("kiln.build/installation={installation}");
        let seen = Seen::default();
        let list = api
            .list(&ListParams::default().labels(&selector))
            .await
            .expect("lists pods");
        assert!(list.items.is_empty(), "the installation is new");
        let version = list.metadata.resource_version.expect("a list has a version");
        let watch = tokio::spawn(watch(api.clone(), selector.clone(), version, Arc::clone(&seen)));
        Self {
            api,
            namespace: namespace.to_owned(),
            selector,
            seen,
            watch: AbortOnDropHandle::new(watch),
        }
    }

    /// UID and build of every pod that ever was.
    pub(in crate::cluster) fn all(&self) -> Vec<(String, String)> {
        assert!(!self.watch.is_finished(), "the watch of pods broke");
        let seen = self.seen.lock().expect("no panic meanwhile");
        seen.iter().map(|(uid, build)| (uid.clone(), build.clone())).collect()
    }

    /// How many pods this build ever had.
    pub(in crate::cluster) fn of(&self, build: &str) -> usize {
        self.all().iter().filter(|(_, owner)| owner == build).count()
    }

    /// Waits until the API server holds no pod of the installation, or of one build.
    pub(in crate::cluster) async fn wait_until_none(&self, build: Option<&str>, limit: Duration) {
        let mut selector = self.selector.clone();
        if let Some(build) = build {
            selector = format!("{selector},kiln.build/build={build}");
        }
        let params = ListParams::default().labels(&selector);
        eventually("no pod is left", limit, || async {
            let list = self.api.list(&params).await.expect("lists pods");
            list.items.is_empty().then_some(())
        })
        .await;
    }

    /// A pod, as the API server holds it.
    pub(in crate::cluster) async fn get(&self, name: &str) -> Pod {
        self.api.get(name).await.expect("the pod")
    }

    /// A pod, if there is one.
    pub(in crate::cluster) async fn find(&self, name: &str) -> Option<Pod> {
        self.api.get_opt(name).await.expect("an answer")
    }

    /// The Secret of a pod, if there is one.
    pub(in crate::cluster) async fn secret(&self, name: &str) -> Option<Secret> {
        let secrets: Api<Secret> = Api::namespaced(self.api.clone().into_client(), &self.namespace);
        secrets.get_opt(name).await.expect("an answer")
    }

    /// Runs a program in a container.
    pub(in crate::cluster) async fn exec(&self, name: &str, container: &str, argv: &[&str]) -> String {
        let output = tokio::process::Command::new("kubectl")
            .args([
                "exec",
                "--namespace",
                &self.namespace,
                name,
                "--container",
                container,
                "--",
            ])
            .args(argv)
            .output()
            .await
            .expect("kubectl runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{argv:?} in {container}: {said}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// `kubectl delete pod`, with or without `--grace-period=0 --force`.
    pub(in crate::cluster) async fn delete(&self, name: &str, force: bool) {
        let how = if force {
            DeleteParams::default().grace_period(0)
        } else {
            DeleteParams::default()
        };
        self.api.delete(name, &how).await.expect("deletes the pod");
    }

    /// What `kubectl drain` asks for.
    pub(in crate::cluster) async fn evict(&self, name: &str) {
        self.api
            .evict(name, &EvictParams::default())
            .await
            .expect("evicts the pod");
    }

    /// Removes whatever is left, and says what it was.
    pub(super) async fn clear(&self) -> String {
        let params = ListParams::default().labels(&self.selector);
        let mut report = String::new();
        let Ok(list) = self.api.list(&params).await else {
            return "the API server doesn't answer".to_owned();
        };
        for pod in list {
            let name = pod.metadata.name.unwrap_or_default();
            let status = serde_json::to_string(&pod.status).unwrap_or_default();
            report = format!("{report}{name}: {status}\n");
        }
        // Failing tests clear up as well as they can.
        let _ = self
            .api
            .delete_collection(&DeleteParams::default().grace_period(0), &params)
            .await;
        report
    }
}

async fn watch(api: Api<Pod>, selector: String, mut version: String, seen: Seen) {
    loop {
        let params = WatchParams::default().labels(&selector);
        let events = api.watch(&params, &version).await.expect("a watch");
        let mut events = events.boxed();
        while let Ok(Some(event)) = events.try_next().await {
            let pod = match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) => pod,
                WatchEvent::Bookmark(bookmark) => {
                    version = bookmark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) => panic!("the watch of pods broke: {status:?}"),
            };
            version = pod.metadata.resource_version.expect("a version");
            let build = pod.metadata.labels.unwrap_or_default()["kiln.build/build"].clone();
            let uid = pod.metadata.uid.expect("a UID");
            seen.lock().expect("no panic meanwhile").insert(uid, build);
        }
    }
}
