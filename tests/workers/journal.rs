//! One sequence a build; readers never skip.

use std::{sync::Arc, time::Duration};

use chrono::Utc;
use kiln::{
    domain::{
        event::{Event, Log, LogStream, StepName},
        id::ReplicaId,
        queue::ProjectLimits,
    },
    journal::{AppendError, History, Reader, Signals, TailLimits, Writer},
    store::{
        self, Lease,
        entries::pack,
        journal::{Append, Appended, LogCursor, StepCursor},
        leases,
        queue::{ClaimLimits, claim},
    },
};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::support::create;

fn log(text: String) -> Event {
    Event::Log(Log {
        step: StepName::Build,
        stream: LogStream::Stdout,
        at: chrono::DateTime::UNIX_EPOCH,
        text,
        partial: false,
        replaced: 0,
    })
}

fn cursor(line: u64) -> LogCursor {
    let mut cursor = LogCursor::default();
    if line > 0 {
        cursor.0.insert(
            StepName::Build,
            StepCursor {
                line,
                at_ms: line,
                ..StepCursor::default()
            },
        );
    }
    cursor
}

async fn leases(pool: &PgPool, count: usize) -> Vec<Lease> {
    for _ in 0..count {
        create(pool).await;
    }
    let owner = ReplicaId::new();
    leases::register(pool, owner, "test", Duration::from_mins(1))
        .await
        .expect("registers");
    let limits = ClaimLimits {
        batch: 64,
        live: 1000,
        project: ProjectLimits::NONE,
    };
    claim(pool, owner, limits, "pod-", Utc::now())
        .await
        .expect("claims")
        .into_iter()
        .map(|claimed| claimed.lease)
        .collect()
}

#[sqlx::test]
async fn concurrent_readers_see_every_entry_once_and_in_order(pool: PgPool) {
    read_while_written(pool, TailLimits::default()).await;
}

/// Almost everything is let go of before everybody has it.
#[sqlx::test]
async fn readers_that_fall_behind_see_every_entry_once_and_in_order(pool: PgPool) {
    let limits = TailLimits {
        build: 2_000,
        total: 6_000,
    };
    read_while_written(pool, limits).await;
}

async fn read_while_written(pool: PgPool, limits: TailLimits) {
    const LINES: u64 = 200;
    let leases = leases(&pool, 8).await;
    let (signals, exchange) = Signals::with_tails(pool.clone(), limits);
    let (writer, flusher) = Writer::new(pool.clone(), signals.clone());
    let stop = CancellationToken::new();
    let tasks = [
        tokio::spawn(exchange.run(stop.clone())),
        tokio::spawn(flusher.run(stop.clone())),
    ];

    let mut readers = tokio::task::JoinSet::new();
    for lease in leases.iter().cycle().take(24) {
        let (history, signals, build) = (History::new(pool.clone()), signals.clone(), lease.attempt.build);
        readers.spawn(async move {
            let mut reader = Reader::open(&history, &signals, build, 0)
                .await
                .expect("opens")
                .expect("exists")
                .reader;
            let (mut last, mut text) = (0, String::new());
            while let Some(page) = reader.next().await.expect("reads") {
                for (seq, event) in page.iter() {
                    assert_eq!(*seq, last + 1, "{build} skipped or repeated");
                    last = *seq;
                    if let Event::Log(log) = event {
                        text.push_str(&log.text);
                    }
                }
            }
            text
        });
    }
    let mut writers = tokio::task::JoinSet::new();
    for lease in leases.clone() {
        let (writer, pool, signals) = (writer.clone(), pool.clone(), signals.clone());
        writers.spawn(async move {
            for line in (0..LINES).step_by(2) {
                let events = [log(format!("{line}\n")), log(format!("{}\n", line + 1))];
                writer
                    .append(lease, cursor(line), cursor(line + 2), &events, 0)
                    .await
                    .expect("appends");
            }
            let now = Utc::now();
            let state = store::leases::held(&pool, &lease).await.expect("reads").expect("held");
            let running = state.clone().run(now).expect("legal");
            let facts = store::transitions::AttemptFacts::default();
            store::transitions::apply(&pool, &lease, state.name(), &running, &facts, now)
                .await
                .expect("writes");
            let done = running.clone().succeed(None, now).expect("legal");
            let head = store::transitions::apply(&pool, &lease, running.name(), &done, &facts, now)
                .await
                .expect("writes");
            signals.head(lease.attempt.build, head);
        });
    }
    writers.join_all().await;
    let expected = (0..LINES).fold(String::new(), |text, line| text + &format!("{line}\n"));
    for text in readers.join_all().await {
        assert_eq!(text, expected);
    }
    assert_eq!((signals.heads().watched(), signals.heads().held_bytes()), (0, 0));
    stop.cancel();
    for task in tasks {
        task.await.expect("ends");
    }
}

#[sqlx::test]
async fn an_append_that_is_repeated_is_done_once(pool: PgPool) {
    let lease = leases(&pool, 1).await[0];
    let append = Append {
        fence: lease.into(),
        from: cursor(0),
        to: cursor(1),
        packed: pack(&[log("once\n".to_owned())]),
        text: 5,
    };
    let first = store::journal::append(&pool, std::slice::from_ref(&append))
        .await
        .expect("appends");
    let second = store::journal::append(&pool, std::slice::from_ref(&append))
        .await
        .expect("appends");
    assert_eq!(first, [Appended::Durable(3)]);
    assert_eq!(second, first);
    let page = store::journal::read(&pool, lease.attempt.build, 0)
        .await
        .expect("reads");
    let logs = page.iter().filter(|(_, event)| matches!(event, Event::Log(_))).count();
    assert_eq!(logs, 1);
}

#[sqlx::test]
async fn a_lost_lease_appends_nothing_and_spares_the_others(pool: PgPool) {
    let leases = leases(&pool, 2).await;
    let stale = Lease {
        epoch: leases[0].epoch - 1,
        ..leases[0]
    };
    let (signals, _exchange) = Signals::new(pool.clone());
    let (writer, flusher) = Writer::new(pool.clone(), signals);
    let stop = CancellationToken::new();
    let flusher = tokio::spawn(flusher.run(stop.clone()));
    let writer = Arc::new(writer);
    let (events, from, to) = ([log("x\n".to_owned())], cursor(0), cursor(1));
    let (lost, kept) = tokio::join!(
        writer.append(stale, from.clone(), to.clone(), &events, 2),
        writer.append(leases[1], from.clone(), to.clone(), &events, 2),
    );
    assert_eq!(lost, Err(AppendError::Fenced));
    assert!(kept.is_ok());
    stop.cancel();
    flusher.await.expect("ends");
}

#[sqlx::test]
async fn a_reader_ahead_of_the_journal_ends_with_the_build(pool: PgPool) {
    let build = create(&pool).await;
    let (signals, _exchange) = Signals::new(pool.clone());
    let history = History::new(pool.clone());
    let mut reader = Reader::open(&history, &signals, build, 500)
        .await
        .expect("opens")
        .expect("exists")
        .reader;
    let reading = tokio::spawn(async move { reader.next().await });
    let outcome = store::builds::cancel(&pool, build, Utc::now()).await.expect("cancels");
    let store::builds::CancelOutcome::Accepted { build: cancelled, .. } = outcome else {
        panic!("refused")
    };
    signals.head(build, cancelled.journal_head);
    let end = tokio::time::timeout(super::support::DEADLINE, reading)
        .await
        .expect("ends")
        .expect("no panic");
    assert!(end.expect("reads").is_none());
}

#[sqlx::test]
async fn followers_share_what_was_read_and_encoded_once(pool: PgPool) {
    let lease = leases(&pool, 1).await[0];
    let build = lease.attempt.build;
    let (signals, _exchange) = Signals::new(pool.clone());
    let history = History::new(pool.clone());
    let mut readers = Vec::new();
    for _ in 0..50 {
        let opened = Reader::open(&history, &signals, build, 0).await.expect("opens");
        let mut reader = opened.expect("exists").reader;
        let page = reader.next().await.expect("reads").expect("no end");
        assert_eq!(page.last().map(|(seq, _)| *seq), Some(2));
        readers.push(reader);
    }
    let entry = Append {
        fence: lease.into(),
        from: cursor(0),
        to: cursor(1),
        packed: pack(&[log("shared\n".to_owned())]),
        text: 7,
    };
    let following = readers.into_iter().map(|mut reader| {
        tokio::spawn(async move {
            reader
                .next()
                .await
                .expect("reads")
                .expect("no end")
                .server_sent(|_| true)
        })
    });
    let following: Vec<_> = following.collect();
    store::journal::append(&pool, &[entry]).await.expect("appends");
    signals.head(build, 3);
    let mut places = std::collections::HashSet::new();
    for sent in following {
        let sent = tokio::time::timeout(super::support::DEADLINE, sent)
            .await
            .expect("is sent")
            .expect("no panic");
        assert!(sent.starts_with(b"id: 3\nevent: log\n"));
        places.insert(sent.as_ptr() as usize);
    }
    assert_eq!(places.len(), 1, "encoded more than once");
}
