//! A kubelet that runs nothing: it reports what a real one would.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use chrono::{DateTime, SecondsFormat, Utc};
use kiln_agent::wire::{
    frame::{Frame, Stream},
    push::{Seal, SpoolStep, push_url, seal_url},
    report::{Exit, Report},
};
use kube::{
    Client,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    core::Request,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    task::{JoinHandle, JoinSet},
};

use crate::{
    cluster::{Cluster, Seen as News, client},
    setting::required,
};

const LOG_TOKEN: &str = "kiln.build/log-token";
/// Lines of each build's log.
const LINES: u64 = 100;
const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// As much of a pod as is needed here.
#[derive(Clone, Deserialize)]
pub(crate) struct Pod {
    pub(crate) metadata: Metadata,
}

#[derive(Clone, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What becomes of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// They run, print their log and end well.
    Succeed,
    /// They run for ever.
    Run,
    /// They run, end well and are removed here: nobody else would.
    RemoveToo,
}

/// Plays until it is dropped.
pub(crate) struct Kubelet {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What became of the pods.
#[derive(Default)]
struct Seen {
    /// When the watch told of each.
    created: HashMap<String, DateTime<Utc>>,
    /// Those that are over and removed.
    removed: usize,
    problem: Option<String>,
}

fn taken(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kubelet {
    /// For pods that are created from now on; `base` is where their logs go.
    pub(crate) async fn start(
        cluster: &Cluster,
        namespace: &str,
        selector: &str,
        base: Option<&str>,
        role: Role,
    ) -> anyhow::Result<Self> {
        let pods = cluster.watch::<Pod>(selector).await?;
        let seen = Arc::<Mutex<Seen>>::default();
        let life = Life {
            admin: client(&required("KUBECONFIG", "the cluster, see make cluster")?).await?,
            pods: Request::new(format!("/api/v1/namespaces/{namespace}/pods")),
            http: reqwest::Client::new(),
            base: base.map(str::to_owned),
            role,
            log: log(),
        };
        let (cluster, selector, told) = (cluster.clone(), selector.to_owned(), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            if let Err(error) = play_all(&cluster, &selector, pods, Arc::new(life), &told).await {
                taken(&told).problem = Some(format!("{error:#}"));
            }
        });
        Ok(Self { seen, task })
    }

    /// When the watch told of each pod.
    pub(crate) fn created(&self) -> HashMap<String, DateTime<Utc>> {
        taken(&self.seen).created.clone()
    }

    /// How many pods have been played to their end.
    pub(crate) fn played(&self) -> usize {
        taken(&self.seen).removed
    }

    /// Fails when something went wrong with any pod.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match &taken(&self.seen).problem {
            Some(problem) => anyhow::bail!("playing the kubelet: {problem}"),
            None => Ok(()),
        }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Plays the pods that a watch tells of. The server ends every watch after some minutes; another one follows.
async fn play_all(
    cluster: &Cluster,
    selector: &str,
    mut pods: UnboundedReceiver<News<Pod>>,
    life: Arc<Life>,
    told: &Mutex<Seen>,
) -> anyhow::Result<()> {
    let mut playing = JoinSet::new();
    loop {
        let mut fresh = Vec::new();
        tokio::select! {
            news = pods.recv() => match news {
                Some(news) if news.created => fresh.push((news.pod, news.at)),
                Some(_) => {}
                None => {
                    pods = cluster.watch::<Pod>(selector).await?;
                    fresh.extend(life.list(selector).await?.into_iter().map(|pod| (pod, Utc::now())));
                }
            },
            Some(played) = playing.join_next() => {
                played??;
                taken(told).removed += 1;
            }
        }
        for (pod, at) in fresh {
            if taken(told).created.insert(pod.metadata.name.clone(), at).is_none() {
                let life = Arc::clone(&life);
                playing.spawn(async move { life.play(pod).await });
            }
        }
    }
}

/// What a pod goes through.
struct Life {
    admin: Client,
    pods: Request,
    http: reqwest::Client,
    base: Option<String>,
    role: Role,
    /// Frames of a build's log.
    log: Vec<u8>,
}

impl Life {
    async fn list(&self, selector: &str) -> anyhow::Result<Vec<Pod>> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Pod>,
        }
        let list = self.pods.list(&ListParams::default().labels(selector))?;
        Ok(self.admin.request::<List>(list).await?.items)
    }

    async fn play(&self, pod: Pod) -> anyhow::Result<()> {
        let name = &pod.metadata.name;
        let begun = now();
        self.report(name, &running(&begun)).await?;
        if self.role == Role::Run {
            return Ok(());
        }
        if let Some(base) = &self.base {
            let token = pod.metadata.annotations.get(LOG_TOKEN);
            let token = token.context("the pod has no token for its log: is agent_url set?")?;
            let attempt = name.strip_prefix("kiln-").context("a pod of Kiln's")?;
            let url = format!("{base}/internal/v1/attempts/{attempt}/log");
            self.ship(&url, token).await.context("shipping the log")?;
        }
        self.report(name, &ended(&begun)).await?;
        if self.role == Role::RemoveToo {
            let at_once = DeleteParams::default().grace_period(0);
            self.admin.request_text(self.pods.delete(name, &at_once)?).await?;
        }
        Ok(())
    }

    async fn report(&self, name: &str, status: &Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"status": status}));
        let request = self
            .pods
            .patch_subresource("status", name, &PatchParams::default(), &patch)?;
        self.admin.request_text(request).await?;
        Ok(())
    }

    /// What the sidecar of a short build does.
    async fn ship(&self, url: &str, token: &str) -> anyhow::Result<()> {
        let seal = |frames: &[u8], lines| Seal {
            lines,
            bytes: frames.len() as u64,
            crc32: crc32fast::hash(frames),
            complete: true,
        };
        let source = self.http.post(seal_url(url, SpoolStep::Source)).json(&seal(&[], 0));
        let pushed = self
            .http
            .post(push_url(url, SpoolStep::Build, 0))
            .body(self.log.clone());
        let sealed = self
            .http
            .post(seal_url(url, SpoolStep::Build))
            .json(&seal(&self.log, LINES));
        for request in [source, pushed, sealed] {
            request.bearer_auth(token).send().await?.error_for_status()?;
        }
        Ok(())
    }
}

fn log() -> Vec<u8> {
    let mut frames = Vec::new();
    for number in 1..=LINES {
        let text = format!("{number}: {}", "x".repeat(90));
        Frame {
            number,
            at_ms: 1_763_900_000_000 + number,
            stream: Stream::Stdout,
            partial: false,
            text: text.as_bytes(),
        }
        .encode(&mut frames);
    }
    frames
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn report(lines: u64, digest: Option<&str>) -> String {
    Report {
        exit: Exit::Code(0),
        lines,
        bytes: 0,
        commit: None,
        digest: digest.map(str::to_owned),
        problem: None,
        failed: None,
        tail: String::new(),
    }
    .to_json()
}

fn container(name: &str, state: &Value) -> Value {
    let running = state.get("running").is_some();
    json!({
        "name": name, "image": "bench", "imageID": "", "ready": running, "started": running, "restartCount": 0, "state": state,
    })
}

fn terminated(begun: &str, message: &str) -> Value {
    json!({"terminated": {
        "exitCode": 0, "reason": "Completed", "startedAt": begun, "finishedAt": now(), "message": message,
    }})
}

fn running(begun: &str) -> Value {
    let runs = json!({"running": {"startedAt": begun}});
    json!({
        "phase": "Running",
        "startTime": begun,
        "initContainerStatuses": [
            container("ship", &runs),
            container("source", &terminated(begun, &report(0, None))),
        ],
        "containerStatuses": [container("build", &runs)],
    })
}

fn ended(begun: &str) -> Value {
    json!({
        "phase": "Succeeded",
        "startTime": begun,
        "initContainerStatuses": [
            container("ship", &terminated(begun, "")),
            container("source", &terminated(begun, &report(0, None))),
        ],
        "containerStatuses": [container("build", &terminated(begun, &report(LINES, Some(DIGEST))))],
    })
}
