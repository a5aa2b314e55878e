//! Several writers of one log at the same time, as two replicas that take pushes and a worker that reads: whatever they
//! repeat and whoever is first, every line is there once and in order, and no reader skips.

use std::{sync::Arc, time::Duration};

use chrono::Utc;
use kiln::{
    domain::{
        build::LogVia,
        clock::SystemClock,
        event::{Event, StepName},
        id::ReplicaId,
        queue::ProjectLimits,
    },
    journal::{
        History, LogLimits, Logs, Reader, Signals, Writer,
        lines::{Jumps, Lines},
        log::Change,
        push::{Piece, PushError},
    },
    store::{
        Lease,
        journal::Standing,
        leases,
        queue::{ClaimLimits, claim},
        transitions::{AttemptFacts, apply},
    },
};
use kiln_agent::wire::{
    frame::{Frame, Stream},
    push::{Seal, crc32},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::support::create;

const LINES: u64 = 120;

/// A spool, and where its frames begin.
struct Spool {
    bytes: Vec<u8>,
    borders: Vec<usize>,
}

impl Spool {
    fn new() -> Self {
        let (mut bytes, mut borders) = (Vec::new(), vec![0]);
        for number in 1..=LINES {
            Frame {
                number,
                at_ms: number,
                stream: if number.is_multiple_of(3) {
                    Stream::Stderr
                } else {
                    Stream::Stdout
                },
                partial: false,
                text: number.to_string().as_bytes(),
            }
            .encode(&mut bytes);
            borders.push(bytes.len());
        }
        Self { bytes, borders }
    }

    /// The frame that begins at an offset.
    fn frame_at(&self, offset: u64) -> usize {
        let offset = usize::try_from(offset).expect("small");
        self.borders.binary_search(&offset).expect("a border of frames")
    }

    /// A piece from before or at a frame up to some frames further.
    fn piece(&self, frame: usize, random: &mut StdRng) -> (u64, &[u8]) {
        let from = frame.saturating_sub(random.random_range(0..6));
        let to = (frame + random.random_range(1..9)).min(self.borders.len() - 1);
        (
            self.borders[from] as u64,
            &self.bytes[self.borders[from]..self.borders[to]],
        )
    }
}

/// An attempt's `ship`, or one of two that run at the same time.
async fn ship(logs: Logs, lease: Lease, seed: u64) {
    let (spool, mut random) = (Spool::new(), StdRng::seed_from_u64(seed));
    let attempt = lease.attempt;
    let mut held = 0;
    while held < spool.bytes.len() as u64 {
        let (offset, piece) = spool.piece(spool.frame_at(held), &mut random);
        let piece = Piece {
            step: StepName::Build,
            offset,
            bytes: piece,
            printed: None,
        };
        held = match logs.push(attempt, piece).await {
            Ok(told) => told.offset,
            Err(PushError::Offset(held)) => held,
            Err(error) => panic!("{error}"),
        };
    }
    let seal = Seal {
        lines: LINES,
        bytes: spool.bytes.len() as u64,
        crc32: crc32(0, &spool.bytes),
        complete: true,
    };
    logs.seal(attempt, StepName::Build, seal).await.expect("sealed");
}

/// A worker that reads what the cluster has, and goes by what it knew of the journal at some earlier time.
async fn read(logs: Logs, lease: Lease, seed: u64) {
    let (spool, mut random) = (Spool::new(), StdRng::seed_from_u64(seed));
    let project = "default".parse().expect("a name");
    let mut log = logs.attempt(lease, project, Standing::default());
    let limit = log.limit().await;
    for _ in 0..20 {
        let line = usize::try_from(log.cursor().step(StepName::Build).line).expect("small");
        let (_, piece) = spool.piece(line, &mut random);
        log.update(|standing| {
            let held = standing.cursor.step(StepName::Build);
            let mut lines = Lines::new(StepName::Build, 1, held, Jumps::Stop, limit.room(standing));
            lines.take(piece);
            let mut batch = lines.finish();
            batch.cursor.via = Some(LogVia::Kubernetes);
            (held.sealed.is_none() && batch.cursor.line > held.line).then(|| Change {
                cursor: standing.cursor.with(StepName::Build, batch.cursor),
                events: batch.events,
                text: batch.text,
            })
        })
        .await
        .expect("appends");
    }
}

/// Follows a build to its end; returns its lines.
async fn follow(history: History, signals: Signals, lease: Lease) -> Vec<String> {
    let opened = Reader::open(&history, &signals, lease.attempt.build, 0).await;
    let mut reader = opened.expect("opens").expect("exists").reader;
    let (mut last, mut text) = (0, String::new());
    while let Some(page) = reader.next().await.expect("reads") {
        for (seq, event) in page.iter() {
            assert_eq!(*seq, last + 1, "skipped or repeated");
            last = *seq;
            match event {
                Event::Log(log) => text += &log.text,
                Event::Gap(gap) => panic!("{gap:?}"),
                _ => {}
            }
        }
    }
    text.lines().map(str::to_owned).collect()
}

async fn finish(pool: &PgPool, signals: &Signals, lease: Lease) {
    let now = Utc::now();
    let state = leases::held(pool, &lease).await.expect("reads").expect("held");
    let running = state.clone().run(now).expect("legal");
    let done = running.clone().succeed(None, now).expect("legal");
    let facts = AttemptFacts::default();
    let step = apply(pool, &lease, state.name(), &running, &facts, now).await;
    step.expect("writes");
    let head = apply(pool, &lease, running.name(), &done, &facts, now).await;
    signals.head(lease.attempt.build, head.expect("writes"));
}

#[sqlx::test]
async fn every_line_is_there_once_whoever_brings_it(pool: PgPool) {
    const BUILDS: usize = 6;
    for _ in 0..BUILDS {
        create(&pool).await;
    }
    let owner = ReplicaId::new();
    leases::register(&pool, owner, "test", Duration::from_mins(1))
        .await
        .expect("registers");
    let limits = ClaimLimits {
        batch: 64,
        live: 1000,
        project: ProjectLimits::NONE,
    };
    let claimed = claim(&pool, owner, limits, "pod-", Utc::now()).await.expect("claims");
    let leases: Vec<_> = claimed.into_iter().map(|claimed| claimed.lease).collect();
    assert_eq!(leases.len(), BUILDS);

    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let replicas: Vec<_> = (0..2)
        .map(|_| {
            let (signals, exchange) = Signals::new(pool.clone());
            let (writer, flusher) = Writer::new(pool.clone(), signals.clone());
            tasks.spawn(exchange.run(stop.clone()));
            tasks.spawn(flusher.run(stop.clone()));
            let logs = Logs::new(pool.clone(), writer, Arc::new(SystemClock), LogLimits::default());
            (logs, signals)
        })
        .collect();

    let (mut readers, mut builds) = (JoinSet::new(), JoinSet::new());
    for (seed, &lease) in (0..).zip(&leases) {
        for (_, signals) in &replicas {
            readers.spawn(follow(History::new(pool.clone()), signals.clone(), lease));
        }
        let [(first, signals), (second, _)] = replicas.as_slice() else {
            panic!("two replicas")
        };
        let (first, second, signals, pool) = (first.clone(), second.clone(), signals.clone(), pool.clone());
        builds.spawn(async move {
            tokio::join!(
                ship(first.clone(), lease, seed),
                ship(second.clone(), lease, seed + 100),
                read(second, lease, seed + 200),
                read(first, lease, seed + 300),
            );
            finish(&pool, &signals, lease).await;
        });
    }
    builds.join_all().await;
    let expected: Vec<_> = (1..=LINES).map(|line| line.to_string()).collect();
    for lines in readers.join_all().await {
        assert_eq!(lines, expected);
    }
    stop.cancel();
    tasks.join_all().await;
}
