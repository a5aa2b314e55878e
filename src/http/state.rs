//! What the operations need.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{attempts::Pushes, cors::Cors, metrics::Metrics, stream::sse::StreamTiming, uploads::Uploads};
use crate::{
    domain::{clock::Clock, id::BuildId, queue::QueueConfig, spec::Limits},
    journal::{History, Signals},
    store::{attempt_keys::AttemptKeys, intake::Intake, secrets::seal::Keyring},
};

/// The state of the API. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The database.
    pub pool: PgPool,
    /// What requests that come at the same time ask of it together.
    pub intake: Intake,
    /// What has happened to builds.
    pub history: History,
    /// News to and from the rest of the replica.
    pub signals: Signals,
    /// What requests may ask for.
    pub limits: Arc<Limits>,
    /// In which order builds are taken from the queue, and how many may wait.
    pub queue: QueueConfig,
    /// What callers may send to be built from.
    pub uploads: Arc<Uploads>,
    /// What attempts' tokens are made with.
    pub attempt_keys: AttemptKeys,
    /// Where attempts' logs go.
    pub pushes: Pushes,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Random bytes that can't be guessed.
    pub random: Random,
    /// Encrypts the secrets of projects.
    pub keyring: Keyring,
    /// What `/readyz` tells beside the database.
    pub health: Health,
    /// Counters of the API itself.
    pub metrics: Metrics,
    /// Every metric of the process, for `/metrics`.
    pub registry: Arc<Registry>,
    /// Builds that may run at the same time in the whole installation.
    pub max_live_builds: u32,
    /// Which web pages may call.
    pub cors: Cors,
    /// Stands before the paths in links; without it links are paths.
    pub external_url: Option<Url>,
    /// How streams of events behave.
    pub streams: StreamTiming,
    /// Ends open streams, so that the server can drain. Clients resume on another replica.
    pub stopping: CancellationToken,
}

impl App {
    /// A link to a path of this API, which begins with a slash.
    pub(super) fn link(&self, path: &str) -> String {
        match &self.external_url {
            Some(base) => format!("{}{path}", base.as_str().trim_end_matches('/')),
            None => path.to_owned(),
        }
    }

    /// Tells the rest of the installation, after a commit, that a build has entered another state.
    pub(super) fn announce(&self, build: BuildId, head: i64) {
        self.signals.status(build, head);
    }
}

/// Whether what Kiln depends on is there. Without a receiver the API runs alone, with no runner to ask.
#[derive(Clone, Default)]
pub struct Health {
    /// The cluster, or the host with the local runner; the error says what is wrong in words for an operator.
    pub cluster: Option<watch::Receiver<Result<(), String>>>,
}

type Fill = dyn Fn(&mut [u8]) + Send + Sync;

/// A source of random bytes.
#[derive(Clone)]
pub struct Random(Arc<Fill>);

impl Random {
    /// A source of one's own.
    pub fn new(fill: impl Fn(&mut [u8]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(fill))
    }

    /// The operating system's, by way of a generator that can't be predicted.
    pub fn system() -> Self {
        Self::new(|bytes| rand::Rng::fill_bytes(&mut rand::rng(), bytes))
    }

    /// Random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        (self.0)(&mut bytes);
        bytes
    }

    /// A duration somewhere between `from` and `to`.
    pub fn between(&self, from: std::time::Duration, to: std::time::Duration) -> std::time::Duration {
        let share = f64::from(u32::from_le_bytes(self.bytes())) / f64::from(u32::MAX);
        from + to.saturating_sub(from).mul_f64(share)
    }
}
