//! A worker's hand: takes builds through their lives, step by step, as the engine does it.

use std::time::Duration;

use chrono::Utc;
use kiln::{
    domain::{
        event::{Event, Gap, Log, LogStream, StepName},
        failure::{Failure, FailureCode},
        id::ReplicaId,
        queue::ProjectLimits,
        spec::Digest,
        state::{BuildState, RetryPolicy},
    },
    journal::Signals,
    store::{
        Lease,
        entries::pack,
        journal::{Append, Appended, LogCursor, StepCursor, append},
        leases,
        queue::{ClaimLimits, claim},
        transitions::{AttemptFacts, apply},
    },
};
use sqlx::PgPool;

/// A build in hand.
pub(super) struct Hand {
    pool: PgPool,
    signals: Signals,
    lease: Lease,
    state: BuildState,
    line: u64,
}

impl Hand {
    /// Takes the only build that is queued.
    pub(super) async fn claim(pool: &PgPool, signals: &Signals) -> Self {
        let owner = ReplicaId::new();
        leases::register(pool, owner, "test", Duration::from_mins(1))
            .await
            .expect("registers");
        let limits = ClaimLimits {
            batch: 2,
            live: 100,
            project: ProjectLimits::NONE,
        };
        let mut claimed = claim(pool, owner, limits, "pod-", Utc::now()).await.expect("claims");
        let claimed = claimed.pop().filter(|_| claimed.is_empty()).expect("one queued build");
        signals.head(claimed.lease.attempt.build, claimed.head);
        Self {
            pool: pool.clone(),
            signals: signals.clone(),
            lease: claimed.lease,
            state: claimed.state,
            line: 0,
        }
    }

    /// The right to write for it.
    pub(super) const fn lease(&self) -> &Lease {
        &self.lease
    }

    async fn advance(&mut self, to: BuildState, facts: AttemptFacts) {
        let head = apply(&self.pool, &self.lease, self.state.name(), &to, &facts, Utc::now())
            .await
            .expect("applies");
        self.signals.head(self.lease.attempt.build, head);
        self.state = to;
    }

    /// The pod runs.
    pub(super) async fn run(&mut self) {
        let to = self.state.clone().run(Utc::now()).expect("legal");
        let facts = AttemptFacts {
            node: Some("node-1".to_owned()),
            commit: Some("a".repeat(40).parse().expect("a commit")),
            ..AttemptFacts::default()
        };
        self.advance(to, facts).await;
    }

    async fn append(&mut self, event: Event) {
        let cursor = |line| {
            let mut cursor = LogCursor::default();
            let step = StepCursor {
                line,
                at_ms: line,
                ..StepCursor::default()
            };
            if line > 0 {
                cursor.0.insert(StepName::Build, step);
            }
            cursor
        };
        let entry = Append {
            fence: self.lease.into(),
            from: cursor(self.line),
            to: cursor(self.line + 1),
            packed: pack(&[event]),
            text: 0,
        };
        let appended = append(&self.pool, &[entry]).await.expect("appends");
        let [Appended::Durable(head)] = appended.as_slice() else {
            panic!("{appended:?}")
        };
        self.line += 1;
        self.signals.head(self.lease.attempt.build, *head);
    }

    /// A step prints.
    pub(super) async fn print(&mut self, step: StepName, text: &str) {
        self.append(Event::Log(Log {
            step,
            stream: LogStream::Stdout,
            at: Utc::now(),
            text: text.to_owned(),
            partial: false,
            replaced: 0,
        }))
        .await;
    }

    /// Lines are lost.
    pub(super) async fn lose(&mut self, lines: u64) {
        self.append(Event::Gap(Gap {
            step: StepName::Build,
            lines: Some(lines),
            reason: "the log was rotated away".to_owned(),
            at: Utc::now(),
        }))
        .await;
    }

    /// The image is made.
    pub(super) async fn succeed(mut self) -> Digest {
        let digest: Digest = format!("sha256:{}", "b".repeat(64)).parse().expect("a digest");
        let to = self
            .state
            .clone()
            .succeed(Some(digest.clone()), Utc::now())
            .expect("legal");
        self.advance(to, AttemptFacts::default()).await;
        digest
    }

    /// The attempt fails; whether the build does depends on the code.
    pub(super) async fn fail(self, code: FailureCode) {
        self.fail_with(code, chrono::TimeDelta::zero()).await;
    }

    /// The attempt fails, and the next one comes in an hour.
    pub(super) async fn fail_later(self, code: FailureCode) {
        self.fail_with(code, chrono::TimeDelta::hours(1)).await;
    }

    async fn fail_with(mut self, code: FailureCode, backoff: chrono::TimeDelta) {
        let policy = RetryPolicy {
            max_attempts: 2,
            backoff,
            more_memory: false,
        };
        let failure = Failure::new(code, "it broke");
        let to = self
            .state
            .clone()
            .fail(failure.clone(), policy, Utc::now())
            .expect("legal");
        let facts = AttemptFacts {
            failure: Some(failure),
            ..AttemptFacts::default()
        };
        self.advance(to, facts).await;
    }
}
