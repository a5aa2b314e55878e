//! Logs that attempts push, while workers come and go, and what is done where they don't.

use std::sync::Arc;

use kiln::{
    domain::{
        build::{AttemptLog, LogVia},
        clock::SystemClock,
        event::{Event, StepName},
        failure::FailureCode,
        id::{AttemptId, BuildId},
        state::{BuildState, StateName},
    },
    engine,
    journal::{
        LogLimits, Logs, Signals, Writer,
        push::{Piece, PushError},
    },
    runner::Shipping,
    store::{self, journal::Found},
};
use kiln_agent::wire::{
    frame::{Frame, Stream},
    push::{Printed, Seal, crc32},
};
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    sim::{Script, SimRunner},
    support::{Killable, Worker, assert_idle, create, eventually, journal, wait_for_state},
};

/// The spool of a build step that prints what [`SimRunner`]'s attempts print.
fn spool(lines: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 1..=lines {
        Frame {
            number,
            at_ms: 1_760_000_000_000 + number,
            stream: Stream::Stdout,
            partial: false,
            text: format!("line {number}").as_bytes(),
        }
        .encode(&mut bytes);
    }
    bytes
}

fn printed(lines: u64) -> String {
    text_of(1..=lines)
}

fn text_of(lines: impl Iterator<Item = u64>) -> String {
    lines.fold(String::new(), |text, line| text + &format!("line {line}\n"))
}

/// A replica that takes pushes.
struct Replica {
    logs: Logs,
    stop: CancellationToken,
    tasks: [JoinHandle<()>; 2],
}

impl Replica {
    fn start(pool: &PgPool) -> Self {
        let (signals, exchange) = Signals::new(pool.clone());
        let (writer, flusher) = Writer::new(pool.clone(), signals);
        let stop = CancellationToken::new();
        Self {
            logs: Logs::new(pool.clone(), writer, Arc::new(SystemClock), LogLimits::default()),
            tasks: [
                tokio::spawn(exchange.run(stop.clone())),
                tokio::spawn(flusher.run(stop.clone())),
            ],
            stop,
        }
    }

    /// Pushes the build step's spool up to a line, from wherever the journal is.
    async fn push(&self, attempt: AttemptId, lines: u64) {
        let all = spool(lines);
        let mut offset = 0;
        while offset < all.len() {
            let piece = Piece {
                step: StepName::Build,
                offset: offset as u64,
                bytes: &all[offset..],
                printed: None,
            };
            offset = match self.logs.push(attempt, piece).await {
                Ok(told) => usize::try_from(told.offset).expect("small"),
                Err(PushError::Offset(held)) => usize::try_from(held).expect("small"),
                Err(error) => panic!("{error}"),
            };
        }
    }

    /// Says how much the build step has printed, and sends none of it.
    async fn announce(&self, attempt: AttemptId, held: u64, printed: Printed) {
        let piece = Piece {
            step: StepName::Build,
            offset: spool(held).len() as u64,
            bytes: &[],
            printed: Some(printed),
        };
        self.logs.push(attempt, piece).await.expect("taken");
    }

    async fn seal(&self, attempt: AttemptId, step: StepName, lines: u64) {
        let bytes = spool(lines);
        let seal = Seal {
            lines,
            bytes: bytes.len() as u64,
            crc32: crc32(0, &bytes),
            complete: true,
        };
        self.logs.seal(attempt, step, seal).await.expect("sealed");
    }

    async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("ends");
        }
    }
}

fn quick(config: &mut engine::Config) {
    config.log_push_patience_seconds = 1;
    config.log_seal_timeout_seconds = 2;
}

/// The first attempt, once it runs.
async fn running(pool: &PgPool, build: BuildId) -> AttemptId {
    wait_for_state(pool, build, StateName::Running).await;
    AttemptId { build, number: 1 }
}

/// Waits until the journal holds the build step up to a line, and says what brought it.
async fn held(pool: &PgPool, attempt: AttemptId, line: u64) -> Option<LogVia> {
    eventually(&format!("line {line} is held"), || async {
        match store::journal::find(pool, attempt).await.expect("reads") {
            Found::Live(found) => {
                let step = found.standing.cursor.step(StepName::Build);
                (step.line == line).then_some(step.via)
            }
            other => panic!("{other:?}"),
        }
    })
    .await
}

async fn shown(pool: &PgPool, build: BuildId) -> Option<AttemptLog> {
    let build = store::builds::get(pool, build).await.expect("reads").expect("exists");
    build.attempts[0].log
}

/// The text of a finished build, and its gaps.
async fn log(pool: &PgPool, build: BuildId) -> (String, Vec<Option<u64>>) {
    let (mut text, mut gaps) = (String::new(), Vec::new());
    for (_, event) in journal(pool, build).await {
        match event {
            Event::Log(log) => text += &log.text,
            Event::Gap(gap) => gaps.push(gap.lines),
            _ => {}
        }
    }
    (text, gaps)
}

#[sqlx::test]
async fn the_end_waits_for_the_seal_and_nothing_is_read(pool: PgPool) {
    let runner = SimRunner::new(Script::Hang(30));
    runner.set_shipping(Shipping::Running);
    let (worker, replica) = (Worker::start(&pool, &runner), Replica::start(&pool));
    let build = create(&pool).await;
    let attempt = running(&pool, build).await;
    replica.seal(attempt, StepName::Source, 0).await;
    replica.push(attempt, 10).await;
    runner.finish_all();
    replica.push(attempt, 20).await;
    replica.push(attempt, 30).await;
    assert_eq!(held(&pool, attempt, 30).await, Some(LogVia::Push));
    let stored = store::builds::get(&pool, build).await.expect("reads").expect("exists");
    assert_eq!(stored.state.name(), StateName::Running, "over without the seal");
    replica.seal(attempt, StepName::Build, 30).await;
    wait_for_state(&pool, build, StateName::Succeeded).await;
    assert_eq!(log(&pool, build).await, (printed(30), vec![]));
    let whole = AttemptLog {
        via: LogVia::Push,
        sealed: true,
    };
    assert_eq!(shown(&pool, build).await, Some(whole));
    assert_eq!(runner.reads(), 0);
    assert_idle(&pool, &runner).await;
    worker.drain().await;
    replica.stop().await;
}

#[sqlx::test]
async fn workers_are_killed_between_pushes(pool: PgPool) {
    const ROUNDS: u64 = 4;
    let runner = SimRunner::new(Script::Hang(ROUNDS * 10));
    runner.set_shipping(Shipping::Running);
    let replica = Replica::start(&pool);
    let mut worker = Killable::start(&pool, &runner);
    let build = create(&pool).await;
    let attempt = running(&pool, build).await;
    replica.seal(attempt, StepName::Source, 0).await;
    for round in 1..=ROUNDS {
        // Killed at some moment of a push.
        let pushing = replica.push(attempt, round * 10);
        let killing = async {
            tokio::task::yield_now().await;
            std::mem::replace(&mut worker, Killable::start(&pool, &runner)).kill();
        };
        tokio::join!(pushing, killing);
        if round == ROUNDS {
            runner.finish_all();
        }
    }
    replica.seal(attempt, StepName::Build, ROUNDS * 10).await;
    wait_for_state(&pool, build, StateName::Succeeded).await;
    assert_eq!(log(&pool, build).await, (printed(ROUNDS * 10), vec![]));
    assert_eq!(runner.launches()[&attempt], 1);
    assert_eq!(runner.reads(), 0);
    worker.kill();
    replica.stop().await;
}

#[sqlx::test]
async fn what_never_pushes_is_read_and_shown(pool: PgPool) {
    let runner = SimRunner::new(Script::Hang(20));
    runner.set_shipping(Shipping::Running);
    let worker = Worker::start_with(&pool, &runner, quick);
    let build = create(&pool).await;
    let attempt = running(&pool, build).await;
    // Of the source step nothing comes; it has ended, and what there is of it was read.
    assert_eq!(held(&pool, attempt, 20).await, Some(LogVia::Kubernetes));
    runner.finish_all();
    wait_for_state(&pool, build, StateName::Succeeded).await;
    assert_eq!(log(&pool, build).await, (printed(20), vec![]));
    let read = AttemptLog {
        via: LogVia::Kubernetes,
        sealed: false,
    };
    assert_eq!(shown(&pool, build).await, Some(read));
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn a_push_that_comes_late_has_what_the_cluster_lost(pool: PgPool) {
    let runner = SimRunner::new(Script::Hang(20));
    runner.set_shipping(Shipping::Running);
    runner.rotate(6..=9);
    let (worker, replica) = (Worker::start_with(&pool, &runner, quick), Replica::start(&pool));
    let build = create(&pool).await;
    let attempt = running(&pool, build).await;
    // Behind the jump nothing is taken as long as a push may come.
    assert_eq!(held(&pool, attempt, 5).await, Some(LogVia::Kubernetes));
    replica.push(attempt, 12).await;
    assert_eq!(held(&pool, attempt, 12).await, Some(LogVia::Push));
    replica.push(attempt, 20).await;
    runner.finish_all();
    replica.seal(attempt, StepName::Build, 20).await;
    wait_for_state(&pool, build, StateName::Succeeded).await;
    assert_eq!(log(&pool, build).await, (printed(20), vec![]));
    assert_idle(&pool, &runner).await;
    worker.drain().await;
    replica.stop().await;
}

#[sqlx::test]
async fn what_a_dead_push_left_is_read_and_what_is_missing_is_a_gap(pool: PgPool) {
    for (rotated, gaps) in [(0..=0, vec![]), (13..=17, vec![Some(5)])] {
        let runner = SimRunner::new(Script::Hang(20));
        runner.set_shipping(Shipping::Running);
        runner.rotate(rotated.clone());
        let (worker, replica) = (Worker::start(&pool, &runner), Replica::start(&pool));
        let build = create(&pool).await;
        let attempt = running(&pool, build).await;
        replica.seal(attempt, StepName::Source, 0).await;
        replica.push(attempt, 10).await;
        runner.set_shipping(Shipping::Over);
        runner.finish_all();
        wait_for_state(&pool, build, StateName::Succeeded).await;
        let (text, found) = log(&pool, build).await;
        assert_eq!(found, gaps);
        let expected = (1..=20_u64).filter(|line| !rotated.contains(line));
        assert_eq!(text, text_of(expected));
        let read = AttemptLog {
            via: LogVia::Kubernetes,
            sealed: false,
        };
        assert_eq!(shown(&pool, build).await, Some(read));
        assert_idle(&pool, &runner).await;
        worker.drain().await;
        replica.stop().await;
    }
}

#[sqlx::test]
async fn what_is_pushed_and_sealed_while_the_log_is_read_is_whole(pool: PgPool) {
    for readable in [true, false] {
        let runner = SimRunner::new(Script::Each(vec![Script::Hang(20), Script::Succeed(5)]));
        runner.set_shipping(Shipping::Running);
        let (worker, replica) = (Worker::start(&pool, &runner), Replica::start(&pool));
        let build = create(&pool).await;
        let attempt = running(&pool, build).await;
        replica.seal(attempt, StepName::Source, 0).await;
        replica.push(attempt, 10).await;
        runner.let_read(false);
        if !readable {
            runner.lose_logs();
        }
        runner.set_shipping(Shipping::Over);
        // Nobody but the log's own end can say how much was printed.
        runner.break_all();
        eventually("the log is read", || async { (runner.reads() == 1).then_some(()) }).await;
        replica.push(attempt, 20).await;
        replica.seal(attempt, StepName::Build, 20).await;
        runner.let_read(true);
        wait_for_state(&pool, build, StateName::Succeeded).await;
        assert_eq!(log(&pool, build).await, (printed(20) + &printed(5), vec![]));
        let stored = store::builds::get(&pool, build).await.expect("reads").expect("exists");
        let failure = stored.attempts[0].failure.as_ref().expect("a failure");
        assert_eq!(failure.code, FailureCode::Internal, "{}", failure.message);
        assert_idle(&pool, &runner).await;
        worker.drain().await;
        replica.stop().await;
    }
}

#[sqlx::test]
async fn a_push_that_falls_silent_after_the_end_is_not_waited_for_when_all_can_be_read(pool: PgPool) {
    let runner = SimRunner::new(Script::Hang(20));
    runner.set_shipping(Shipping::Running);
    let worker = Worker::start_with(&pool, &runner, |config| {
        config.log_push_patience_seconds = 1;
        // Longer than the test may take.
        config.log_seal_timeout_seconds = 600;
    });
    let replica = Replica::start(&pool);
    let build = create(&pool).await;
    let attempt = running(&pool, build).await;
    replica.seal(attempt, StepName::Source, 0).await;
    replica.push(attempt, 10).await;
    runner.finish_all();
    wait_for_state(&pool, build, StateName::Succeeded).await;
    assert_eq!(log(&pool, build).await, (printed(20), vec![]));
    assert_idle(&pool, &runner).await;
    worker.drain().await;
    replica.stop().await;
}

#[sqlx::test]
async fn a_step_that_ends_without_a_word_and_without_a_log_is_a_lost_log(pool: PgPool) {
    let runner = SimRunner::new(Script::Each(vec![Script::Hang(20), Script::Succeed(5)]));
    runner.set_shipping(Shipping::Running);
    let (worker, replica) = (Worker::start(&pool, &runner), Replica::start(&pool));
    let build = create(&pool).await;
    let attempt = running(&pool, build).await;
    replica.seal(attempt, StepName::Source, 0).await;
    replica.push(attempt, 10).await;
    runner.lose_logs();
    runner.set_shipping(Shipping::Over);
    runner.break_all();
    wait_for_state(&pool, build, StateName::Succeeded).await;
    let stored = store::builds::get(&pool, build).await.expect("reads").expect("exists");
    assert!(matches!(stored.state, BuildState::Succeeded { .. }));
    let failure = stored.attempts[0].failure.as_ref().expect("a failure");
    assert_eq!(failure.code, FailureCode::LogLost, "{}", failure.message);
    assert!(failure.message.contains("left no report"), "{}", failure.message);
    assert_idle(&pool, &runner).await;
    worker.drain().await;
    replica.stop().await;
}

#[sqlx::test]
async fn an_attempt_that_vanished_unseen_ends_its_log_with_a_gap(pool: PgPool) {
    let runner = SimRunner::new(Script::Each(vec![Script::Hang(20), Script::Succeed(5)]));
    runner.set_shipping(Shipping::Running);
    let (first, replica) = (Killable::start(&pool, &runner), Replica::start(&pool));
    let build = create(&pool).await;
    let attempt = running(&pool, build).await;
    replica.seal(attempt, StepName::Source, 0).await;
    replica.push(attempt, 10).await;
    first.kill();
    runner.vanish_all();
    // Of a pod that it has never seen a runner knows nothing.
    runner.set_shipping(Shipping::Absent);
    let second = Worker::start(&pool, &runner);
    wait_for_state(&pool, build, StateName::Succeeded).await;
    assert_eq!(log(&pool, build).await, (printed(10) + &printed(5), vec![None]));
    assert_idle(&pool, &runner).await;
    second.drain().await;
    replica.stop().await;
}

#[sqlx::test]
async fn what_a_pod_that_vanished_still_had_is_counted(pool: PgPool) {
    let cases = [
        // It was printed up to line 17, and perhaps further; or that was all.
        (Some((17, false)), vec![Some(7), None]),
        (Some((17, true)), vec![Some(7)]),
        (Some((10, true)), vec![]),
        (None, vec![None]),
    ];
    for (announced, gaps) in cases {
        let runner = SimRunner::new(Script::Each(vec![Script::Hang(20), Script::Succeed(5)]));
        runner.set_shipping(Shipping::Running);
        let (worker, replica) = (Worker::start_with(&pool, &runner, quick), Replica::start(&pool));
        let build = create(&pool).await;
        let attempt = running(&pool, build).await;
        replica.seal(attempt, StepName::Source, 0).await;
        replica.push(attempt, 10).await;
        if let Some((lines, all)) = announced {
            // The word of two pushes may come in any order.
            replica.announce(attempt, 10, Printed { lines, all }).await;
            replica.announce(attempt, 10, Printed { lines: 12, all: false }).await;
        }
        runner.vanish_all();
        runner.set_shipping(Shipping::Absent);
        wait_for_state(&pool, build, StateName::Succeeded).await;
        assert_eq!(log(&pool, build).await, (printed_twice(), gaps));
        assert_idle(&pool, &runner).await;
        worker.drain().await;
        replica.stop().await;
    }
}

#[sqlx::test]
async fn a_pod_that_vanished_may_still_hand_over_its_log(pool: PgPool) {
    let runner = SimRunner::new(Script::Each(vec![Script::Hang(20), Script::Succeed(5)]));
    runner.set_shipping(Shipping::Running);
    let worker = Worker::start_with(&pool, &runner, |config| {
        // Longer than the test may take.
        config.log_push_patience_seconds = 600;
    });
    let replica = Replica::start(&pool);
    let build = create(&pool).await;
    let attempt = running(&pool, build).await;
    replica.seal(attempt, StepName::Source, 0).await;
    replica.push(attempt, 5).await;
    runner.vanish_all();
    runner.set_shipping(Shipping::Absent);
    replica.push(attempt, 10).await;
    replica.seal(attempt, StepName::Build, 10).await;
    wait_for_state(&pool, build, StateName::Succeeded).await;
    assert_eq!(log(&pool, build).await, (printed_twice(), vec![]));
    assert_idle(&pool, &runner).await;
    worker.drain().await;
    replica.stop().await;
}

/// What two attempts printed: ten lines, and five.
fn printed_twice() -> String {
    printed(10) + &printed(5)
}
