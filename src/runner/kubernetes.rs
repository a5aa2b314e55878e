//! Attempts as pods: one pod for each, named after it, so that creating it twice is refused and finding it again is
//! easy. This is the only place that knows `kube`.
//!
//! [`pod`] and [`observe`] are pure: assignment to pod, pod to observation. One [`watch`] for all pods feeds the
//! [`index`], from which everybody learns what becomes of an attempt. [`connection`] knows whether the cluster can be
//! used at all.

mod call;
pub mod config;
mod connection;
mod end;
#[cfg(test)]
mod fake;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gate;
mod index;
mod launch;
mod log;
mod observe;
mod pod;
mod seen;
#[cfg(test)]
mod stub;
mod watch;

use std::sync::Arc;

use tokio::sync::{Semaphore, watch as channel};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{config::Config, connection::Connection, index::Index};
use super::{
    LaunchError, Launched, LogPosition, LogReader, Observation, Readiness, Runner, RunnerError, Shipping,
    registry::Registry,
};
use crate::domain::{
    build::{Assignment, LogVia},
    event::StepName,
    id::AttemptId,
};

/// Runs attempts as pods.
pub struct KubernetesRunner {
    inner: Arc<Inner>,
    tasks: TaskTracker,
}

struct Inner {
    config: Config,
    registries: Vec<Registry>,
    connection: Arc<Connection>,
    index: Arc<Index>,
    launches: Semaphore,
    logs: Semaphore,
    shutdown: CancellationToken,
}

impl KubernetesRunner {
    /// Begins to watch the cluster's pods. Needs no cluster to begin with: until there is one, launches are refused
    /// and [`Runner::readiness`] says why. All tasks end with `shutdown`.
    pub fn start(
        config: Config,
        registries: Vec<Registry>,
        shutdown: CancellationToken,
        tasks: TaskTracker,
    ) -> Result<Self, RunnerError> {
        let probe = serde_json::to_vec(&pod::probe(&config))
            .map_err(|error| RunnerError::new("writing the pod that the cluster is probed with", error))?;
        let connection = Connection::new(config.namespace.clone(), probe, config.request_concurrency);
        let index = Arc::new(Index::default());
        tasks.spawn(Arc::clone(&connection).run(shutdown.clone()));
        tasks.spawn(watch::run(
            Arc::clone(&connection),
            Arc::clone(&index),
            config.installation.clone(),
            shutdown.clone(),
        ));
        Ok(Self {
            inner: Arc::new(Inner {
                launches: Semaphore::new(config.launch_concurrency.max(1)),
                logs: Semaphore::new(config.log_concurrency.max(1)),
                config,
                registries,
                connection,
                index,
                shutdown,
            }),
            tasks,
        })
    }
}

impl Runner for KubernetesRunner {
    const NAME_PREFIX: &'static str = pod::NAME_PREFIX;
    const LOG_VIA: LogVia = LogVia::Kubernetes;

    async fn launch(&self, assignment: &Assignment) -> Result<Launched, LaunchError> {
        launch::launch(&self.inner, assignment).await
    }

    fn observe(&self, attempt: AttemptId) -> channel::Receiver<Observation> {
        self.inner.index.observe(attempt)
    }

    fn read_log(&self, attempt: AttemptId, step: StepName, after: LogPosition) -> LogReader {
        log::read(&self.inner, &self.tasks, attempt, step, after)
    }

    fn shipping(&self, attempt: AttemptId) -> Shipping {
        self.inner.index.shipping(attempt)
    }

    async fn stop(&self, attempt: AttemptId) -> Result<(), RunnerError> {
        end::stop(&self.inner, attempt).await
    }

    async fn remove(&self, attempt: AttemptId) -> Result<(), RunnerError> {
        end::remove(&self.inner, attempt).await
    }

    async fn list(&self) -> Result<Vec<AttemptId>, RunnerError> {
        self.inner
            .index
            .list()
            .ok_or_else(|| RunnerError::new("listing the pods", "they have not been listed yet"))
    }

    fn readiness(&self) -> channel::Receiver<Readiness> {
        self.inner.connection.readiness()
    }
}
