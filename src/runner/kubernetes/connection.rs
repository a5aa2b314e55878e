//! The client of the Kubernetes API, and whether it is of use.
//!
//! A kubeconfig that can't be read, a cluster that is away or a namespace that is missing must not end the service:
//! builds stay queued, `/readyz` says what to do, and the check is repeated until it succeeds.

use std::{
    error::Error as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::{Client, Config as KubeConfig, api::PostParams, client::ClientBuilder, core::Request};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    call::{Fault, Place, call},
    gate::{Gate, retry_after},
};
use crate::runner::Readiness;

/// Between checks while all is well.
const RELAXED: Duration = Duration::from_secs(30);
/// Between checks while something is wrong.
const EAGER: Duration = Duration::from_secs(5);

/// How the watch of the pods goes. Builds are only launched where they can be watched.
#[derive(Clone, Debug)]
pub(super) enum Watch {
    /// The pods have not been listed yet.
    Unlisted,
    /// Nothing is wrong with it, as far as is known.
    Fine,
    /// The server refused it, for this reason, at this time. A watch that comes back to life may stay silent for
    /// long, while one that keeps failing says so again and again: old news is no news.
    Refused(String, Instant),
}

/// A refusal counts for this long; the longest pause between two tries is half of it.
const REFUSAL: Duration = Duration::from_mins(1);

/// The client, shared by everything that talks to the cluster.
pub(super) struct Connection {
    namespace: String,
    /// A pod like those of builds, as JSON: asking whether it could be created answers whether theirs can.
    probe: Vec<u8>,
    client: watch::Sender<Option<Client>>,
    gate: Arc<Gate>,
    /// URL of the API server that the kubeconfig named last.
    server: Mutex<String>,
    readiness: watch::Sender<Readiness>,
    watch: watch::Sender<Watch>,
    check_now: Notify,
}

impl Connection {
    /// A connection that isn't there yet; see [`Self::run`].
    /// It has at most `places` requests under way.
    pub(super) fn new(namespace: String, probe: Vec<u8>, places: usize) -> Arc<Self> {
        Arc::new(Self {
            namespace,
            probe,
            gate: Arc::new(Gate::new(places)),
            client: watch::Sender::new(None),
            server: Mutex::default(),
            readiness: watch::Sender::new(Readiness::NotReady("the cluster has not been asked yet".to_owned())),
            watch: watch::Sender::new(Watch::Unlisted),
            check_now: Notify::new(),
        })
    }

    /// The namespace of the build pods.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// URL of the API server.
    pub(super) fn server(&self) -> String {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a request by this client.
    async fn send(
        &self,
        client: &Client,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<bytes::Bytes, Fault> {
        let _place = self.gate.enter().await;
        let server = self.server();
        let place = Place {
            server: &server,
            namespace: &self.namespace,
        };
        let result = call(client, place, request).await;
        if let Err(Fault::Busy(asked)) = &result {
            self.gate.close(*asked);
        }
        result
    }

    /// Waits while the server has asked everybody for a pause.
    pub(super) async fn open(&self) {
        self.gate.open().await;
    }

    /// Requests about pods in the namespace.
    pub(super) fn pods(&self) -> Request {
        Request::new(format!("/api/v1/namespaces/{}/pods", self.namespace))
    }

    /// Requests about Secrets in the namespace.
    pub(super) fn secrets(&self) -> Request {
        Request::new(format!("/api/v1/namespaces/{}/secrets", self.namespace))
    }

    /// The client, or why there is none.
    pub(super) fn client(&self) -> Result<Client, Fault> {
        self.client.borrow().clone().ok_or_else(|| {
            Fault::Unusable(match &*self.readiness.borrow() {
                Readiness::NotReady(reason) => reason.clone(),
                Readiness::Ready => "the connection to the cluster is being renewed".to_owned(),
            })
        })
    }

    /// Follows the client: it changes when the kubeconfig was read again.
    pub(super) fn clients(&self) -> watch::Receiver<Option<Client>> {
        self.client.subscribe()
    }

    /// Follows the readiness.
    pub(super) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Sends a request about pods or their Secrets.
    pub(super) async fn call(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<bytes::Bytes, Fault> {
        let result = self.send(&self.client()?, request).await;
        if let Err(Fault::Unusable(reason)) = &result {
            self.report_problem(reason.clone());
        }
        result
    }

    /// Sends a request that can be repeated, a few times if need be.
    pub(super) async fn call_again(
        &self,
        request: impl Fn(&Request) -> Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<bytes::Bytes, Fault> {
        let mut pauses = [200, 1000].map(Duration::from_millis).into_iter();
        loop {
            let result = self.call(request(&self.pods())).await;
            let (Err(Fault::Busy(_) | Fault::Unclear(..)), Some(pause)) = (&result, pauses.next()) else {
                return result;
            };
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    /// Somebody found that the cluster is of no use: says so at once, and checks again soon.
    pub(super) fn report_problem(&self, reason: String) {
        self.set(&Readiness::NotReady(reason));
        self.check_now.notify_one();
    }

    /// How the watch goes now. Anything but good news leads to a check.
    pub(super) fn report_watch(&self, watch: Watch) {
        let news = match &watch {
            Watch::Fine => !matches!(*self.watch.borrow(), Watch::Fine),
            Watch::Unlisted | Watch::Refused(..) => true,
        };
        if news {
            self.watch.send_replace(watch);
            self.check_now.notify_one();
        }
    }

    /// Something broke off: the next check comes soon.
    pub(super) fn suspect(&self) {
        self.check_now.notify_one();
    }

    /// Keeps the client and the readiness up to date.
    pub(super) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            self.check().await;
            let ready = *self.readiness.borrow() == Readiness::Ready;
            let wait = if ready { RELAXED } else { EAGER };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(jittered(wait)) => {}
                // Not more than a few times a second, whatever is reported.
                () = async {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    self.check_now.notified().await;
                } => {}
            }
        }
    }

    async fn check(&self) {
        let client = self.client.borrow().clone();
        let mut verdict = match &client {
            Some(client) => self.probe(client).await,
            None => Err(String::new()),
        };
        if verdict.is_err() {
            // What is wrong may be what the kubeconfig said: read it again.
            verdict = match connect(&self.gate).await {
                Ok((renewed, server)) => {
                    *self.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
                    let verdict = self.probe(&renewed).await;
                    if verdict.is_ok() || client.is_none() {
                        self.client.send_replace(Some(renewed));
                    }
                    verdict
                }
                Err(reason) => Err(reason),
            };
        }
        let verdict = verdict.and_then(|()| match &*self.watch.borrow() {
            Watch::Unlisted => Err("the build pods are being listed".to_owned()),
            Watch::Refused(reason, at) if at.elapsed() < REFUSAL => Err(reason.clone()),
            Watch::Refused(..) | Watch::Fine => Ok(()),
        });
        self.set(&match verdict {
            Ok(()) => Readiness::Ready,
            Err(reason) => Readiness::NotReady(reason),
        });
    }

    /// Asks whether a build pod could be created: the API answers, knows the service, has the namespace, and admits
    /// such pods there.
    async fn probe(&self, client: &Client) -> Result<(), String> {
        let params = PostParams {
            dry_run: true,
            field_manager: None,
        };
        match self.send(client, self.pods().create(&params, self.probe.clone())).await {
            Ok(_) => Ok(()),
            Err(Fault::Unusable(reason)) => Err(reason),
            Err(Fault::Unclear(reason, _)) => Err(format!("the Kubernetes API fails ({reason})")),
            // It answers, and what it has against the probe it may not have against a build. A webhook that can't
            // take part in a dry run refuses it.
            Err(Fault::Busy(_) | Fault::NotFound | Fault::AlreadyExists | Fault::Conflict | Fault::Refused(_)) => {
                Ok(())
            }
        }
    }

    fn set(&self, readiness: &Readiness) {
        let changed = self.readiness.send_if_modified(|current| {
            let changed = current != readiness;
            current.clone_from(readiness);
            changed
        });
        if changed {
            match readiness {
                Readiness::Ready => tracing::info!(namespace = %self.namespace, "the cluster takes build pods"),
                Readiness::NotReady(reason) => {
                    tracing::warn!(namespace = %self.namespace, reason, "the cluster doesn't take build pods");
                }
            }
        }
    }
}

/// A client by the kubeconfig as it is now and its server's URL, or why there can be none.
/// Whatever its server refuses for a while closes the gate.
async fn connect(gate: &Arc<Gate>) -> Result<(Client, String), String> {
    let mut config = KubeConfig::infer().await.map_err(|error| {
        // In a pod both ways of finding one are of interest.
        let outside = std::env::var_os("KUBERNETES_SERVICE_HOST").is_none();
        let cause = error
            .source()
            .filter(|_| outside)
            .map_or_else(|| error.to_string(), ToString::to_string);
        format!("no usable kubeconfig: {cause}. Set KUBECONFIG to one, or run in a pod with a service account.")
    })?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Who calls decides what is tried again, and for how long.
    config.default_retry = false;
    let server = config.cluster_url.to_string();
    let gate = Arc::clone(gate);
    let heed = tower::util::MapResponseLayer::new(move |answer: http::Response<_>| {
        if answer.status() == http::StatusCode::TOO_MANY_REQUESTS {
            gate.close(retry_after(answer.headers()));
        }
        answer
    });
    let client = ClientBuilder::try_from(config).map_err(|error| format!("the kubeconfig can't be used: {error}"))?;
    let client = client.with_layer(&heed).build();
    Ok((client, server.trim_end_matches('/').to_owned()))
}

/// Replicas that failed together don't come back together.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    impl Connection {
        /// A connection to a server that is played by a test.
        pub(in super::super) fn to(client: Client) -> Arc<Self> {
            let connection = Self::new("builds".to_owned(), b"{}".to_vec(), 8);
            connection.client.send_replace(Some(client));
            connection
        }
    }
}
