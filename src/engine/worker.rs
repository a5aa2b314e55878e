//! A worker: one registration in the database, and everything that goes on under it.
//!
//! When the registration is lost (the process was paused, or the database out of reach for longer than the lease),
//! everything under it stops, and the process registers anew under another id.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    Context,
    config::seconds,
    dispatcher,
    driver::{Controls, Driver, Stopped},
    sweeper, trace,
};
use crate::{
    domain::id::{BuildId, ReplicaId},
    runner::{Readiness, Runner},
    store::{self, queue::Claimed},
};

/// Pause before the worker's readiness is stored again, after the database failed.
const READINESS_RETRY: Duration = Duration::from_secs(2);

/// Runs a worker until `shutdown`, then drains: no new builds, drivers stop where another worker can go on.
pub async fn run<R: Runner>(context: Arc<Context<R>>, name: String, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        let session = Session::new();
        let lease = seconds(context.config.lease_seconds);
        // What it decides from the first claim on goes by the database's time.
        let ready = async {
            context.clock.read(&context.pool).await?;
            store::leases::register(&context.pool, session.replica(), &name, lease).await
        };
        if let Err(error) = ready.await {
            tracing::warn!(error = %error, cause = ?std::error::Error::source(&error), "the worker can't register; the database is needed");
            let _ = tokio::time::timeout(Duration::from_secs(1), shutdown.cancelled()).await;
            continue;
        }
        tracing::info!(replica.id = %session.replica(), replica.name = name, "worker registered");
        session.run(&context, &shutdown).await;
    }
}

/// What goes on under one registration.
pub(super) struct Session(Arc<Inner>);

struct Inner {
    replica: ReplicaId,
    drivers: TaskTracker,
    cancels: Mutex<HashMap<BuildId, CancellationToken>>,
    /// Stops every driver.
    stop: CancellationToken,
    freed: Notify,
}

impl Inner {
    fn cancels(&self) -> MutexGuard<'_, HashMap<BuildId, CancellationToken>> {
        // The map is whole after every statement.
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn new() -> Self {
        Self(Arc::new(Inner {
            replica: ReplicaId::new(),
            drivers: TaskTracker::new(),
            cancels: Mutex::default(),
            stop: CancellationToken::new(),
            freed: Notify::new(),
        }))
    }

    /// The id that leases are held under.
    pub(super) fn replica(&self) -> ReplicaId {
        self.0.replica
    }

    /// Told when a build has left this worker's hands, so that there may be room for another.
    pub(super) fn freed(&self) -> &Notify {
        &self.0.freed
    }

    /// Starts the driver of a build.
    pub(super) fn drive<R: Runner>(&self, context: &Arc<Context<R>>, claimed: Claimed, adopted: bool) {
        let inner = Arc::clone(&self.0);
        let context = Arc::clone(context);
        let lease = claimed.lease;
        let build = lease.attempt.build;
        let cancel = CancellationToken::new();
        inner.cancels().insert(build, cancel.clone());
        let controls = Controls {
            cancel,
            stop: inner.stop.clone(),
        };
        self.0.drivers.spawn(async move {
            let driven = {
                let context = Arc::clone(&context);
                // A task of its own, so that a panic ends this attempt's driver and nothing else.
                let span = tracing::info_span!("attempt", build.id = %build, attempt = lease.attempt.number);
                if let Some(parent) = &claimed.trace {
                    trace::join(&span, parent);
                }
                let drive = async move { Driver::new(&context, claimed, adopted, controls).run().await };
                tokio::spawn(drive.instrument(span))
            };
            let outcome = driven.await.unwrap_or_else(|error| {
                tracing::error!(build.id = %build, error = %error, "the build's driver broke");
                Err(Stopped::GiveUp)
            });
            inner.cancels().remove(&build);
            if outcome == Err(Stopped::GiveUp) {
                // While draining, the whole registration goes at once.
                if !inner.stop.is_cancelled()
                    && let Err(error) = store::leases::give_up(&context.pool, &lease).await
                {
                    tracing::warn!(build.id = %build, error = ?error, "the build could not be given up");
                }
            }
            inner.freed.notify_one();
        });
    }

    async fn run<R: Runner>(&self, context: &Arc<Context<R>>, shutdown: &CancellationToken) {
        let lost = CancellationToken::new();
        let ending = CancellationToken::new();
        let watch_end = async {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = lost.cancelled() => {}
            }
            ending.cancel();
        };
        tokio::join!(
            watch_end,
            self.renew(context, &ending, &lost),
            self.tell_readiness(context, &ending),
            self.hear_cancels(context, &ending),
            dispatcher::run(context, self, &ending),
            sweeper::run(context, &ending),
        );
        self.0.stop.cancel();
        self.0.drivers.close();
        let limit = seconds(context.config.drain_timeout_seconds);
        if tokio::time::timeout(limit, self.0.drivers.wait()).await.is_err() {
            tracing::warn!(drivers = self.0.drivers.len(), "drivers did not stop in time");
        }
        // Other workers find what it had at their next look, within a second or so.
        if let Err(error) = store::leases::unregister(&context.pool, self.replica()).await {
            tracing::warn!(error = ?error, "the worker could not unregister; its builds are taken over when its lease ends");
        }
    }

    /// Stores whether this worker can launch anything, for whoever asks why a build waits.
    async fn tell_readiness<R: Runner>(&self, context: &Context<R>, ending: &CancellationToken) {
        let mut readiness = context.runner.readiness();
        loop {
            let not_ready = match &*readiness.borrow_and_update() {
                Readiness::Ready => None,
                Readiness::NotReady(reason) => Some(reason.clone()),
            };
            let stored = store::waiting::set_readiness(&context.pool, self.replica(), not_ready.as_deref()).await;
            if let Err(error) = &stored {
                tracing::debug!(error = %error, "whether the worker can launch could not be stored");
            }
            tokio::select! {
                () = ending.cancelled() => return,
                () = tokio::time::sleep(READINESS_RETRY), if stored.is_err() => {}
                changed = readiness.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// Keeps the registration alive.
    async fn renew<R: Runner>(&self, context: &Context<R>, ending: &CancellationToken, lost: &CancellationToken) {
        let lease = seconds(context.config.lease_seconds);
        let mut every = lease / 4;
        loop {
            if ending.run_until_cancelled(tokio::time::sleep(every)).await.is_none() {
                return;
            }
            every = lease / 4;
            match store::leases::renew(&context.pool, self.replica(), lease).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(replica.id = %self.replica(), "the worker was taken for dead; starting again under a new id");
                    lost.cancel();
                    return;
                }
                // The lease may end meanwhile; writes are fenced, so nothing else is needed.
                Err(error) => {
                    tracing::warn!(error = %error, "the worker's lease could not be renewed");
                    every = lease / 10;
                }
            }
        }
    }

    /// Passes wishes to cancel on to the drivers: by hint at once, and by looking every other second.
    async fn hear_cancels<R: Runner>(&self, context: &Context<R>, ending: &CancellationToken) {
        let mut hints = context.signals.cancels();
        loop {
            let hint = tokio::select! {
                hint = hints.recv() => hint.ok(),
                () = tokio::time::sleep(Duration::from_secs(2)) => None,
                () = ending.cancelled() => return,
            };
            if let Some(build) = hint {
                self.cancel(build);
                continue;
            }
            match store::leases::cancelling(&context.pool, self.replica()).await {
                Ok(builds) => builds.into_iter().for_each(|build| self.cancel(build)),
                Err(error) => tracing::debug!(error = %error, "wishes to cancel can't be read"),
            }
        }
    }

    fn cancel(&self, build: BuildId) {
        if let Some(token) = self.0.cancels().get(&build) {
            token.cancel();
        }
    }
}
