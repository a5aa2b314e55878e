//! A model of the engine's decisions: random claims, ends, kills, pauses, cancels, retries and superseding requests, by the
//! statements that workers use, on a real Postgres. Pods are simulated, and every worker's clock is wrong in its own way.
//! `KILN_MODEL_CASES` asks for more cases than the gate has time for.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use kiln::{
    domain::{
        event::Event,
        failure::{Failure, FailureCode},
        id::{AttemptId, BuildId, ReplicaId},
        queue::ProjectLimits,
        state::{BuildState, RetryPolicy, StateName},
    },
    store::{
        self, Error, Lease,
        builds::{CancelOutcome, CreateOutcome, Retry},
        leases,
        queue::{ClaimLimits, Claimed, claim, take_over},
        transitions::{self, AttemptFacts},
    },
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::json;
use sqlx::PgPool;

use super::support::{journal, new_build};

const WORKERS: usize = 3;
const POLICY: RetryPolicy = RetryPolicy {
    max_attempts: 3,
    backoff: TimeDelta::zero(),
    more_memory: false,
};
const LIMITS: ClaimLimits = ClaimLimits {
    batch: 2,
    live: 5,
    project: ProjectLimits::NONE,
};

/// What can happen. Numbers pick a worker, or one of what there is.
#[derive(Clone, Debug)]
enum Op {
    Create(Option<&'static str>),
    Claim(usize),
    /// Two workers at the same time.
    Race(usize, usize),
    Step(usize, usize, Course),
    /// A worker decides something while a caller wants the build to stop.
    StepAndCancel(usize, usize, Course),
    Cancel(usize),
    Retry(usize),
    /// The worker's process is gone, or stands still for longer than its lease.
    Lapse(usize),
    TakeOver(usize),
    /// Those that stood still go on as if nothing had happened.
    WakeStale,
    /// Somebody deletes a pod.
    Vanish(usize),
    Sweep,
}

/// How an attempt goes on.
#[derive(Clone, Copy, Debug)]
enum Course {
    Well,
    Badly,
    Lost,
    NotReady,
}

fn op() -> impl Strategy<Value = Op> {
    let course = || {
        prop_oneof![
            4 => Just(Course::Well), 1 => Just(Course::Badly), 1 => Just(Course::Lost), 1 => Just(Course::NotReady)
        ]
    };
    let some = || 0..100_usize;
    prop_oneof![
        4 => prop_oneof![Just(None), Just(Some("no")), Just(Some("queued")), Just(Some("running"))].prop_map(Op::Create),
        3 => some().prop_map(Op::Claim),
        2 => (some(), some()).prop_map(|(a, b)| Op::Race(a, b)),
        8 => (some(), some(), course()).prop_map(|(worker, which, course)| Op::Step(worker, which, course)),
        2 => (some(), some(), course()).prop_map(|(worker, which, course)| Op::StepAndCancel(worker, which, course)),
        1 => some().prop_map(Op::Cancel),
        1 => some().prop_map(Op::Retry),
        2 => some().prop_map(Op::Lapse),
        2 => some().prop_map(Op::TakeOver),
        1 => Just(Op::WakeStale),
        1 => some().prop_map(Op::Vanish),
        1 => Just(Op::Sweep),
    ]
}

struct Worker {
    replica: ReplicaId,
    held: Vec<Lease>,
    /// How wrong its clock is.
    off: TimeDelta,
}

impl Worker {
    fn now(&self) -> DateTime<Utc> {
        Utc::now() + self.off
    }
}

struct Model {
    pool: PgPool,
    workers: Vec<Worker>,
    /// Leases that are lost, whether or not their holders know.
    stale: Vec<(Lease, StateName)>,
    builds: Vec<BuildId>,
    /// Pods that exist, and whether they run.
    pods: BTreeMap<AttemptId, bool>,
    /// Attempts that have run: none is launched again.
    ran: BTreeSet<AttemptId>,
}

async fn register(pool: &PgPool) -> ReplicaId {
    let replica = ReplicaId::new();
    leases::register(pool, replica, "model", Duration::from_hours(1))
        .await
        .expect("registers");
    replica
}

impl Model {
    async fn new(pool: &PgPool) -> Self {
        sqlx::query("TRUNCATE builds, journal, replicas CASCADE")
            .execute(pool)
            .await
            .expect("empties");
        let mut workers = Vec::new();
        for hours in [-1, 0, 1].into_iter().take(WORKERS) {
            workers.push(Worker {
                replica: register(pool).await,
                held: Vec::new(),
                off: TimeDelta::hours(hours),
            });
        }
        Self {
            pool: pool.clone(),
            workers,
            stale: Vec::new(),
            builds: Vec::new(),
            pods: BTreeMap::new(),
            ran: BTreeSet::new(),
        }
    }

    async fn apply(&mut self, op: &Op) {
        match *op {
            Op::Create(supersede) => self.create(supersede).await,
            Op::Claim(worker) => {
                let worker = worker % WORKERS;
                let claimed = self.claim(worker).await;
                self.hold(worker, claimed);
            }
            Op::Race(a, b) => {
                let (a, b) = (a % WORKERS, b % WORKERS);
                let (first, second) = tokio::join!(self.claim(a), self.claim(b));
                self.hold(a, first);
                self.hold(b, second);
            }
            Op::Step(worker, which, course) => self.step(worker, which, course, false).await,
            Op::StepAndCancel(worker, which, course) => self.step(worker, which, course, true).await,
            Op::Cancel(which) => {
                if let Some(build) = self.pick(which) {
                    cancel(&self.pool, build).await;
                }
            }
            Op::Retry(which) => self.retry(which).await,
            Op::Lapse(worker) => self.lapse(worker % WORKERS).await,
            Op::TakeOver(worker) => {
                let worker = worker % WORKERS;
                let taken = take_over(&self.pool, self.workers[worker].replica, 3).await;
                self.hold(worker, taken.expect("takes over"));
            }
            Op::WakeStale => self.wake_stale().await,
            Op::Vanish(which) => {
                let attempt = self.pods.keys().nth(which % self.pods.len().max(1)).copied();
                attempt.and_then(|attempt| self.pods.remove(&attempt));
            }
            Op::Sweep => self.sweep().await,
        }
    }

    fn pick(&self, which: usize) -> Option<BuildId> {
        self.builds.get(which % self.builds.len().max(1)).copied()
    }

    async fn create(&mut self, supersede: Option<&str>) {
        let mut new = new_build(0);
        new.spec.group = supersede
            .map(|supersede| serde_json::from_value(json!({"key": "k", "supersede": supersede})).expect("a group"));
        let outcome = store::builds::create(&self.pool, new, None).await.expect("stores");
        let CreateOutcome::Created { build, superseded } = outcome else {
            panic!("{outcome:?}")
        };
        assert!(superseded.iter().all(|older| self.builds.contains(&older.build)));
        self.builds.push(build.id);
    }

    async fn claim(&self, worker: usize) -> Vec<Claimed> {
        let worker = &self.workers[worker];
        claim(&self.pool, worker.replica, LIMITS, "pod-", worker.now())
            .await
            .expect("claims")
    }

    fn hold(&mut self, worker: usize, claimed: Vec<Claimed>) {
        for claimed in claimed {
            let attempt = claimed.lease.attempt;
            let elsewhere = self.workers.iter().flat_map(|worker| &worker.held);
            assert!(
                elsewhere.into_iter().all(|lease| lease.attempt != attempt),
                "{attempt} has two owners"
            );
            self.workers[worker].held.push(claimed.lease);
        }
    }

    /// A worker goes on with one of its builds, as a driver does.
    async fn step(&mut self, worker: usize, which: usize, course: Course, cancelled_meanwhile: bool) {
        let worker = worker % WORKERS;
        let held = &self.workers[worker].held;
        let Some(lease) = held.get(which % held.len().max(1)).copied() else {
            return;
        };
        let attempt = lease.attempt;
        let now = self.workers[worker].now();
        let state = leases::held(&self.pool, &lease).await.expect("reads");
        let state = state.expect("a worker that is alive has what it holds");
        if matches!(state, BuildState::Starting { .. }) && matches!(course, Course::NotReady) {
            if self.pods.contains_key(&attempt) {
                // What may exist can't be taken back.
                return;
            }
            return match transitions::release(&self.pool, &lease, now, now).await {
                Ok(_) => self.let_go(worker, &lease),
                Err(error) => panic!("{error:?}"),
            };
        }
        if matches!(state, BuildState::Starting { .. }) && !self.ran.contains(&attempt) {
            self.launch(attempt);
        }
        let is_there = self.pods.contains_key(&attempt);
        let failed = |code| Failure::new(code, "as the model wants it");
        let (from, next) = (state.name(), state);
        let next = match (next, course) {
            (state @ BuildState::Cancelling { started_at, .. }, Course::Well) if is_there && started_at.is_some() => {
                state.succeed(None, now)
            }
            (state @ BuildState::Cancelling { .. }, _) => state.stop(now),
            (state, _) if !is_there => state.fail(failed(FailureCode::NodeLost), POLICY, now),
            (state, Course::Badly) => state.fail(failed(FailureCode::BuildFailed), POLICY, now),
            (state, Course::Lost) => state.fail(failed(FailureCode::Evicted), POLICY, now),
            (state @ BuildState::Starting { .. }, _) => state.run(now),
            (state, _) => state.succeed(None, now),
        };
        let next = next.expect("the machine allows it");
        let over = !matches!(next, BuildState::Running { .. });
        if over {
            // Its end was seen.
            self.pods.entry(attempt).and_modify(|runs| *runs = false);
        }
        let facts = AttemptFacts {
            failure: over.then(|| failed(FailureCode::NodeLost)),
            ..AttemptFacts::default()
        };
        let write = transitions::apply(&self.pool, &lease, from, &next, &facts, now);
        let written = if cancelled_meanwhile {
            tokio::join!(write, cancel(&self.pool, attempt.build)).0
        } else {
            write.await
        };
        match written {
            Ok(_) if over => {
                self.pods.remove(&attempt);
                self.let_go(worker, &lease);
            }
            Ok(_) => {
                self.ran.insert(attempt);
            }
            Err(Error::Conflict) => assert!(cancelled_meanwhile, "{attempt}: nobody else can have changed it"),
            Err(error) => panic!("{error:?}"),
        }
    }

    fn launch(&mut self, attempt: AttemptId) {
        let runs = self.pods.iter().filter(|(_, runs)| **runs);
        let others = runs.filter(|(other, _)| other.build == attempt.build && **other != attempt);
        assert_eq!(others.count(), 0, "{attempt}: another attempt runs");
        self.pods.entry(attempt).or_insert(true);
    }

    fn let_go(&mut self, worker: usize, lease: &Lease) {
        self.workers[worker].held.retain(|held| held != lease);
    }

    async fn retry(&mut self, which: usize) {
        let Some(of) = self.pick(which) else { return };
        let old = store::builds::get(&self.pool, of)
            .await
            .expect("reads")
            .expect("is there");
        if !old.state.name().is_terminal() {
            return;
        }
        let mut new = new_build(0);
        new.spec = old.spec;
        new.retry = Some(Retry { of, commit: old.commit });
        match store::builds::create(&self.pool, new, None).await.expect("stores") {
            CreateOutcome::Created { build, superseded } => {
                assert_eq!(superseded, []);
                self.builds.push(build.id);
            }
            other => panic!("{other:?}"),
        }
    }

    async fn lapse(&mut self, worker: usize) {
        let gone = self.workers[worker].replica;
        assert!(leases::renew(&self.pool, gone, Duration::ZERO).await.expect("renews"));
        assert_eq!(leases::expire(&self.pool).await.expect("expires"), 1);
        assert!(
            !leases::renew(&self.pool, gone, Duration::from_hours(1))
                .await
                .expect("asks")
        );
        for lease in std::mem::take(&mut self.workers[worker].held) {
            let build = store::builds::get(&self.pool, lease.attempt.build).await;
            let state = build.expect("reads").expect("is there").state.name();
            self.stale.push((lease, state));
        }
        self.workers[worker].replica = register(&self.pool).await;
    }

    async fn wake_stale(&mut self) {
        let now = Utc::now();
        for (lease, from) in std::mem::take(&mut self.stale) {
            assert_eq!(leases::held(&self.pool, &lease).await.expect("reads"), None);
            let done = BuildState::Succeeded {
                started_at: now,
                finished_at: now,
                digest: None,
            };
            let written = transitions::apply(&self.pool, &lease, from, &done, &AttemptFacts::default(), now).await;
            assert!(matches!(written, Err(Error::Conflict)), "{written:?}");
            let released = transitions::release(&self.pool, &lease, now, now).await;
            assert!(matches!(released, Err(Error::Conflict)), "{released:?}");
        }
    }

    async fn sweep(&mut self) {
        let pods: Vec<_> = self.pods.keys().copied().collect();
        for dead in leases::not_live(&self.pool, &pods).await.expect("asks") {
            assert_ne!(self.pods.remove(&dead), Some(true), "{dead} runs, and nobody knows");
        }
    }

    /// What holds at every moment.
    async fn check(&self) {
        let doubled: Vec<uuid::Uuid> = sqlx::query_scalar(
            "SELECT build_id FROM attempts WHERE state IN ('starting', 'running', 'cancelling')
             GROUP BY build_id HAVING count(*) > 1",
        )
        .fetch_all(&self.pool)
        .await
        .expect("reads");
        assert_eq!(doubled, [] as [uuid::Uuid; 0], "builds with two live attempts");
        let (all, live): (i64, i64) = sqlx::query_as(
            "SELECT count(*), count(*) FILTER (WHERE state IN ('starting', 'running', 'cancelling')) FROM builds",
        )
        .fetch_one(&self.pool)
        .await
        .expect("reads");
        assert_eq!(
            usize::try_from(all).expect("small"),
            self.builds.len(),
            "builds are lost"
        );
        assert!(live <= 2 * i64::from(LIMITS.live), "{live} builds are live");
    }

    /// Whatever has happened: workers that go on bring everything to its end.
    async fn finish(&mut self) {
        for worker in 0..WORKERS {
            self.lapse(worker).await;
        }
        // Each build has so many attempts, each of so many steps.
        let rounds = self.builds.len() * 3 * 4 + 10;
        for _ in 0..rounds {
            if store::queue::depth(&self.pool).await.expect("reads").is_empty() {
                break;
            }
            let taken = take_over(&self.pool, self.workers[0].replica, 100)
                .await
                .expect("takes over");
            self.hold(0, taken);
            let claimed = self.claim(0).await;
            self.hold(0, claimed);
            for which in (0..self.workers[0].held.len()).rev() {
                self.step(0, which, Course::Well, false).await;
            }
        }
        assert_eq!(
            store::queue::depth(&self.pool).await.expect("reads"),
            [],
            "builds are stuck"
        );
        self.sweep().await;
        assert!(self.pods.is_empty(), "{:?}", self.pods);
        self.wake_stale().await;
        let legal = diagram();
        for &build in &self.builds {
            self.check_journal(build, &legal).await;
        }
    }

    async fn check_journal(&self, build: BuildId, legal: &BTreeSet<(String, String)>) {
        let entries = journal(&self.pool, build).await;
        assert!(
            entries.iter().zip(1..).all(|((seq, _), expected)| *seq == expected),
            "{entries:?}"
        );
        let ends = entries
            .iter()
            .filter(|(_, event)| matches!(event, Event::End(_)))
            .count();
        assert_eq!(ends, 1, "{entries:?}");
        assert!(matches!(entries.last(), Some((_, Event::End(_)))), "{entries:?}");
        let mut before = "[*]".to_owned();
        for (_, event) in &entries {
            if let Event::Status(status) = event {
                let step = (before, status.state.to_string());
                assert!(legal.contains(&step), "{step:?} is not in the diagram: {entries:?}");
                before = step.1;
            }
        }
        let stored = store::builds::get(&self.pool, build)
            .await
            .expect("reads")
            .expect("is there");
        assert_eq!(stored.state.name().to_string(), before);
        let numbers: Vec<_> = stored.attempts.iter().map(|attempt| attempt.number).collect();
        assert!(
            numbers.iter().zip(1..).all(|(number, expected)| *number == expected),
            "{numbers:?}"
        );
        assert!(stored.attempts.iter().all(|attempt| attempt.state.is_terminal()));
    }
}

async fn cancel(pool: &PgPool, build: BuildId) {
    match store::builds::cancel(pool, build, Utc::now()).await.expect("answers") {
        CancelOutcome::Accepted { .. } | CancelOutcome::Refused(_) => {}
        CancelOutcome::NotFound => panic!("{build} is lost"),
    }
}

/// The arrows of the state machine, as the documentation draws them.
fn diagram() -> BTreeSet<(String, String)> {
    let arrows = include_str!("../../docs/state-machine.md").lines().filter_map(|line| {
        let (from, to) = line.trim().split_once(" --> ")?;
        let to = to.split(':').next()?;
        Some((from.to_owned(), to.trim().to_owned()))
    });
    arrows.collect()
}

#[sqlx::test]
async fn whatever_happens_no_build_is_lost_stuck_or_doubled(pool: PgPool) {
    let cases = std::env::var("KILN_MODEL_CASES").map_or(16, |cases| cases.parse().expect("a number"));
    let handle = tokio::runtime::Handle::current();
    let outcome = tokio::task::spawn_blocking(move || {
        let config = Config {
            cases,
            max_shrink_iters: 100,
            failure_persistence: None,
            ..Config::default()
        };
        TestRunner::new(config).run(&proptest::collection::vec(op(), 10..80), |ops| {
            handle.block_on(async {
                let mut model = Model::new(&pool).await;
                for op in &ops {
                    model.apply(op).await;
                    model.check().await;
                }
                model.finish().await;
            });
            Ok::<_, TestCaseError>(())
        })
    });
    if let Err(failure) = outcome.await.expect("no panic outside of the cases") {
        panic!("{failure}");
    }
}
