//! The test cluster, as somebody beside Kiln sees it.

use std::env;

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use kube::{
    Client, Config,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::Request,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::mpsc;

use super::setting::required;

/// Label by which Kiln knows its own pods.
pub(crate) const INSTALLATION: &str = "kiln.build/installation";

/// Clients of the API server.
#[derive(Clone)]
pub(crate) struct Cluster {
    /// Whose permissions Kiln has; the ceiling is measured with the same.
    service: Client,
    admin: Client,
    pods: Request,
    namespace: String,
    /// What Kiln gets as `KUBECONFIG`.
    pub(crate) kubeconfig: String,
}

impl Cluster {
    /// By the environment that `scripts/cluster/shell.sh` sets.
    pub(crate) async fn open(namespace: &str) -> anyhow::Result<Self> {
        let admin = required("KUBECONFIG", "the cluster, see make cluster")?;
        let service = env::var("KILN_TEST_KUBECONFIG").unwrap_or_else(|_| admin.clone());
        Ok(Self {
            service: client(&service).await?,
            admin: client(&admin).await?,
            pods: Request::new(format!("/api/v1/namespaces/{namespace}/pods")),
            namespace: namespace.to_owned(),
            kubeconfig: service,
        })
    }

    /// Creates a pod with as little work as can be: the answer is received and not read.
    pub(crate) async fn create(&self, pod: &Value) -> anyhow::Result<()> {
        let request = self.pods.create(&PostParams::default(), serde_json::to_vec(pod)?)?;
        self.service.request_text(request).await?;
        Ok(())
    }

    /// Follows pods from now on. `T` is as much of a pod as is wanted.
    pub(crate) async fn watch<T>(&self, selector: &str) -> anyhow::Result<mpsc::UnboundedReceiver<Seen<T>>>
    where
        T: DeserializeOwned + Clone + Send + 'static,
    {
        #[derive(Deserialize)]
        struct List {
            metadata: ListMeta,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct ListMeta {
            resource_version: String,
        }
        let list = self.pods.list(&ListParams::default().labels(selector).limit(1))?;
        let list: List = self.admin.request(list).await?;
        let watch = WatchParams::default().labels(selector).disable_bookmarks();
        let watch = self.pods.watch(&watch, &list.metadata.resource_version)?;
        let mut events = Box::pin(self.admin.request_events::<T>(watch).await?);
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (pod, created) = match events.try_next().await {
                    Ok(Some(WatchEvent::Added(pod))) => (pod, true),
                    Ok(Some(WatchEvent::Modified(pod))) => (pod, false),
                    Ok(Some(WatchEvent::Deleted(_) | WatchEvent::Bookmark(_))) => continue,
                    // Whoever waits finds the channel closed.
                    Ok(Some(WatchEvent::Error(status))) => return eprintln!("the watch was refused: {status:?}"),
                    Ok(None) => return eprintln!("the API server ended the watch"),
                    Err(error) => return eprintln!("the watch broke off: {error}"),
                };
                let at = Utc::now();
                if sender.send(Seen { pod, created, at }).is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    /// A pod as it is stored.
    pub(crate) async fn pod(&self, name: &str) -> anyhow::Result<Value> {
        let request = self.pods.get(name, &kube::core::params::GetParams::default())?;
        Ok(self.admin.request(request).await?)
    }

    /// Removes pods without mercy and waits until they are gone.
    pub(crate) async fn remove(&self, selector: &str) -> anyhow::Result<()> {
        // Not all at once: thousands take the API server longer than a request may.
        let some = ListParams::default().labels(selector).limit(500);
        for _ in 0..1200 {
            let list: Value = self.admin.request(self.pods.list(&some.clone().limit(1))?).await?;
            if list["items"].as_array().is_some_and(Vec::is_empty) {
                return Ok(());
            }
            let request = self
                .pods
                .delete_collection(&DeleteParams::default().grace_period(0), &some)?;
            if let Err(error) = self.admin.request_text(request).await {
                eprintln!("removing pods of {selector}, once more: {error}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        bail!("pods of {selector} stay in namespace {}", self.namespace)
    }
}

/// A pod that was created or has changed.
pub(crate) struct Seen<T> {
    pub(crate) pod: T,
    pub(crate) created: bool,
    /// When the news arrived here.
    pub(crate) at: DateTime<Utc>,
}

/// A client with what a kubeconfig allows.
pub(crate) async fn client(kubeconfig: &str) -> anyhow::Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| kubeconfig.to_owned())?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    // A request that is tried again would count once.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// The pod as its creator sent it: without what the API server fills in.
pub(crate) fn as_sent(mut pod: Value) -> Value {
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.retain(|key, _| ["name", "labels", "annotations"].contains(&key.as_str()));
    }
    if let Some(spec) = pod["spec"].as_object_mut() {
        let filled_in = [
            ("dnsPolicy", Some("ClusterFirst")),
            ("nodeName", None),
            ("preemptionPolicy", None),
            ("priority", None),
            ("schedulerName", Some("default-scheduler")),
            ("serviceAccount", None),
            ("serviceAccountName", Some("default")),
        ];
        spec.retain(|key, value| {
            !filled_in
                .iter()
                .any(|(field, default)| field == key && default.is_none_or(|default| value.as_str() == Some(default)))
        });
        for list in ["containers", "initContainers"] {
            let containers = spec.get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
                container.remove("terminationMessagePath");
                container.remove("terminationMessagePolicy");
            }
        }
    }
    if let Some(pod) = pod.as_object_mut() {
        pod.remove("status");
    }
    pod
}

/// The same pod under another name, for another installation.
pub(crate) fn renamed(pod: &Value, name: &str, installation: &str) -> Value {
    let mut pod = pod.clone();
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["labels"][INSTALLATION] = installation.into();
    pod
}
