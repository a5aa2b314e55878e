//! Whatever goes wrong while a journal is moved, its entries are there, once.

use std::{sync::Arc, time::Duration};

use kiln::{
    domain::id::BuildId,
    journal::{
        History, ReadError,
        archive::{ArchiveError, mover::MoveError},
    },
    store::archives,
};
use sqlx::PgPool;

use super::{
    store::{Fault, Store},
    support::{archive, finished, move_due, output, read, rows},
};

const DEADLINE: Duration = Duration::from_mins(1);

/// Lets claims of processes that are gone end.
async fn end_claims(pool: &PgPool) {
    sqlx::query("UPDATE archives SET claimed_until = now() - interval '1 second' WHERE archived_at IS NULL")
        .execute(pool)
        .await
        .expect("writes");
}

#[sqlx::test]
async fn killed_at_any_request_it_is_done_again(pool: PgPool) {
    for fault in [Fault::Silence, Fault::DoneInSilence] {
        // As many requests as a move takes, and one more, so that the last round isn't disturbed.
        let mut requests = 0;
        loop {
            let build = finished(&pool, &output(12)).await;
            let store = Arc::new(Store::default());
            let archive = archive(&store);
            let history = History::new(pool.clone()).with_archive(Some(archive.clone()));
            let expected = read(&history, build, 0).await.expect("reads");
            store.fail_after(requests, fault);
            let moving = {
                let (pool, archive) = (pool.clone(), archive.clone());
                tokio::spawn(async move { move_due(&pool, &archive).await })
            };
            let killed = tokio::select! {
                () = store.hung.notified() => true,
                () = async { while rows(&pool, build).await > 0 { tokio::task::yield_now().await } } => false,
                () = tokio::time::sleep(DEADLINE) => panic!("neither moved nor hung"),
            };
            moving.abort();
            let _ = moving.await;
            store.mend();
            assert_eq!(
                read(&history, build, 0).await.expect("reads"),
                expected,
                "after {requests} requests"
            );
            end_claims(&pool).await;
            move_due(&pool, &archive).await.expect("moves");
            assert_eq!(rows(&pool, build).await, 0);
            assert_eq!(store.names().await.len(), 1, "after {requests} requests");
            assert_eq!(
                read(&history, build, 0).await.expect("reads"),
                expected,
                "after {requests} requests"
            );
            if !killed {
                break;
            }
            requests += 1;
        }
        // Written, index read back, all read back.
        assert!(requests >= 3, "only {requests} requests");
    }
}

#[sqlx::test]
async fn killed_between_write_and_delete_it_is_written_again(pool: PgPool) {
    let build = finished(&pool, &output(12)).await;
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    let history = History::new(pool.clone()).with_archive(Some(archive.clone()));
    let expected = read(&history, build, 0).await.expect("reads");
    let claim = archives::claim(&pool, 3600, 600, 1).await.expect("claims")[0];
    let written = archive.write(&pool, claim).await.expect("writes");
    archive.verify(claim, &written).await.expect("is the same");
    // Here the process is killed. Its claim holds for a while, so nobody else does it meanwhile.
    move_due(&pool, &archive).await.expect("nothing to do");
    assert!(rows(&pool, build).await > 0);
    end_claims(&pool).await;
    move_due(&pool, &archive).await.expect("moves");
    assert_eq!(rows(&pool, build).await, 0);
    let names = store.names().await;
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(names[0].as_ref().ends_with(".2.jsonl.zst"), "{names:?}");
    assert_eq!(read(&history, build, 0).await.expect("reads"), expected);

    // One that was only paused wakes up: too late, and harmless.
    assert!(!archives::record(&pool, claim, &written).await.expect("asks"));
    assert_eq!(read(&history, build, 0).await.expect("reads"), expected);
}

#[sqlx::test]
async fn an_archive_that_is_away_loses_nothing(pool: PgPool) {
    let (one, two) = (finished(&pool, &output(12)).await, finished(&pool, &output(3)).await);
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    let history = History::new(pool.clone()).with_archive(Some(archive.clone()));
    let expected = read(&history, one, 0).await.expect("reads");
    for requests in 0..4 {
        store.fail_after(requests, Fault::Refused);
        let failure = move_due(&pool, &archive).await.expect_err("refused");
        assert!(
            matches!(failure, MoveError::Archive(ArchiveError::Unavailable(_))),
            "{failure:?}"
        );
        assert!(rows(&pool, one).await > 0 && rows(&pool, two).await > 0);
        assert_eq!(read(&history, one, 0).await.expect("reads"), expected);
        // It waits before it tries again.
        store.mend();
        move_due(&pool, &archive).await.expect("nothing to do");
        assert!(rows(&pool, one).await > 0);
        assert_eq!(archives::backlog(&pool, 3600).await.expect("reads").0, 2);
        end_claims(&pool).await;
    }
    move_due(&pool, &archive).await.expect("moves");
    assert_eq!(rows(&pool, one).await + rows(&pool, two).await, 0);
    assert_eq!(store.names().await.len(), 2);

    // Away for readers, too: an error that says so, and not an end.
    let fresh = History::new(pool.clone()).with_archive(Some(super::support::archive(&store)));
    store.fail_after(0, Fault::Refused);
    for history in [&history, &fresh] {
        let failure = read(history, one, 0).await.expect_err("away");
        assert!(
            matches!(failure, ReadError::Archive(ArchiveError::Unavailable(_))),
            "{failure:?}"
        );
    }
    let none = read(&History::new(pool.clone()), one, 0)
        .await
        .expect_err("not configured");
    assert!(
        matches!(none, ReadError::Archive(ArchiveError::NotConfigured)),
        "{none:?}"
    );
    store.mend();
    assert_eq!(read(&history, one, 0).await.expect("reads"), expected);
}

#[sqlx::test]
async fn what_comes_back_changed_deletes_nothing(pool: PgPool) {
    let build = finished(&pool, &output(12)).await;
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    let history = History::new(pool.clone()).with_archive(Some(archive.clone()));
    let expected = read(&history, build, 0).await.expect("reads");
    // In a frame, and in the index at the end.
    for byte in [100, usize::MAX] {
        store.damage_writes(byte);
        move_due(&pool, &archive).await.expect("goes on with others");
        assert!(rows(&pool, build).await > 0);
        assert_eq!(read(&history, build, 0).await.expect("reads"), expected);
        store.mend();
        end_claims(&pool).await;
    }
    move_due(&pool, &archive).await.expect("moves");
    assert_eq!(rows(&pool, build).await, 0);
    assert_eq!(read(&history, build, 0).await.expect("reads"), expected);
}

#[sqlx::test]
async fn a_journal_with_a_hole_stays_where_it_is(pool: PgPool) {
    let build = finished(&pool, &output(5)).await;
    sqlx::query("DELETE FROM journal WHERE build_id = $1 AND first_seq = 2")
        .bind(build.0)
        .execute(&pool)
        .await
        .expect("deletes");
    let left = rows(&pool, build).await;
    let store = Arc::new(Store::default());
    move_due(&pool, &archive(&store)).await.expect("goes on with others");
    assert_eq!(rows(&pool, build).await, left);
    assert_eq!(store.names().await, []);
}

#[sqlx::test]
async fn a_damaged_object_is_a_clear_error(pool: PgPool) {
    let build = finished(&pool, &output(12)).await;
    let store = Arc::new(Store::default());
    let first = archive(&store);
    move_due(&pool, &first).await.expect("moves");
    let name = store.names().await.remove(0);
    let expect_damage = async |build: BuildId, archive| {
        let history = History::new(pool.clone()).with_archive(Some(archive));
        let failure = read(&history, build, 0).await.expect_err("damaged");
        assert!(
            matches!(failure, ReadError::Archive(ArchiveError::Damaged { .. })),
            "{failure:?}"
        );
    };
    // A frame, under an index that is known already; then the index.
    store.damage(&name, 60).await;
    expect_damage(build, first).await;
    expect_damage(build, archive(&store)).await;
    store.damage(&name, 60).await;
    let size = archives::get(&pool, build)
        .await
        .expect("reads")
        .expect("archived")
        .bytes;
    store.damage(&name, usize::try_from(size).expect("small") - 20).await;
    expect_damage(build, archive(&store)).await;
    store.remove(&name).await;
    let history = History::new(pool.clone()).with_archive(Some(archive(&store)));
    let failure = read(&history, build, 0).await.expect_err("gone");
    assert!(
        matches!(failure, ReadError::Archive(ArchiveError::Unavailable(_))),
        "{failure:?}"
    );
}
