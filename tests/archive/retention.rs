//! Old builds go whole, and leave a note.

use std::{sync::Arc, time::Duration};

use chrono::{TimeDelta, Utc};
use kiln::{
    domain::id::BuildId,
    engine::keeper::{Keeper, Metrics, Retention},
    journal::{History, archive::Archive},
    store::retention,
};
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;

use super::{
    store::{Fault, Store},
    support::{append, archive, create_as, finish, finished, output, read, rows},
};

fn keeper(pool: &PgPool, archive: Option<Archive>, builds_days: u32) -> Keeper {
    Keeper {
        pool: pool.clone(),
        archive,
        archive_after_seconds: 3600,
        retention: Retention {
            builds_days: Some(builds_days),
            deleted_builds_days: 10,
            ..Retention::default()
        },
        interval_seconds: 60,
        metrics: Metrics::default(),
    }
}

async fn count(pool: &PgPool, table: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
        .fetch_one(pool)
        .await
        .expect("reads")
}

#[sqlx::test]
async fn old_builds_go_with_all_they_have_and_the_others_stay(pool: PgPool) {
    let mut old = Vec::new();
    // More than one batch, half of them in the archive.
    for _ in 0..120 {
        let build = BuildId::new();
        create_as(&pool, build).await;
        append(&pool, build, &output(1)).await;
        finish(&pool, build, TimeDelta::days(91)).await;
        old.push(build);
    }
    let (young, live) = (finished(&pool, &output(2)).await, BuildId::new());
    create_as(&pool, live).await;
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    let stop = CancellationToken::new();
    let history = History::new(pool.clone()).with_archive(Some(archive.clone()));
    let before = read(&history, young, 0).await.expect("reads");

    // Archived first, under a retention that keeps all.
    keeper(&pool, Some(archive.clone()), 3650).keep(&stop).await;
    assert_eq!(store.names().await.len(), 121);
    assert_eq!(count(&pool, "builds").await, 122);

    keeper(&pool, Some(archive.clone()), 90).keep(&stop).await;
    for (table, left) in [("builds", 2), ("archives", 1), ("deleted_builds", 120)] {
        assert_eq!(count(&pool, table).await, left, "{table}");
    }
    for table in ["journal", "attempts", "build_terms", "idempotency_keys"] {
        let statement = format!("{table} WHERE build_id NOT IN ('{young}', '{live}')");
        assert_eq!(count(&pool, &statement).await, 0, "{table}");
    }
    assert_eq!(store.names().await.len(), 1);
    assert_eq!(count(&pool, "deleted_builds WHERE objects IS NOT NULL").await, 0);
    assert_eq!(read(&history, young, 0).await.expect("reads"), before);
    assert!(rows(&pool, live).await > 0);
    let deleted = retention::deleted_build(&pool, old[0])
        .await
        .expect("reads")
        .expect("remembered");
    assert_eq!(deleted.project.as_str(), "default");
    assert_eq!(retention::deleted_build(&pool, live).await.expect("reads"), None);

    // Notes are forgotten in their turn.
    sqlx::query("UPDATE deleted_builds SET deleted_at = now() - interval '11 days' WHERE id <> $1")
        .bind(old[0].0)
        .execute(&pool)
        .await
        .expect("writes");
    keeper(&pool, Some(archive), 90).keep(&stop).await;
    assert_eq!(count(&pool, "deleted_builds").await, 1);
}

#[sqlx::test]
async fn objects_that_could_not_be_removed_are_removed_later(pool: PgPool) {
    let build = finished(&pool, &output(2)).await;
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    let stop = CancellationToken::new();
    keeper(&pool, Some(archive.clone()), 10).keep(&stop).await;
    assert_eq!(store.names().await.len(), 1);
    sqlx::query("UPDATE builds SET finished_at = now() - interval '20 days' WHERE id = $1")
        .bind(build.0)
        .execute(&pool)
        .await
        .expect("writes");
    store.fail_after(0, Fault::Refused);
    keeper(&pool, Some(archive.clone()), 10).keep(&stop).await;
    // It is gone for callers, and the note is kept until the object is gone, too.
    assert!(retention::deleted_build(&pool, build).await.expect("reads").is_some());
    sqlx::query("UPDATE deleted_builds SET deleted_at = now() - interval '30 days'")
        .execute(&pool)
        .await
        .expect("writes");
    keeper(&pool, Some(archive.clone()), 10).keep(&stop).await;
    assert_eq!(
        (store.names().await.len(), count(&pool, "deleted_builds").await),
        (1, 1)
    );
    store.mend();
    keeper(&pool, Some(archive.clone()), 10).keep(&stop).await;
    assert_eq!(store.names().await, []);
    keeper(&pool, Some(archive), 10).keep(&stop).await;
    assert_eq!(count(&pool, "deleted_builds").await, 0);
}

#[sqlx::test]
async fn changes_and_expired_tokens_go_after_their_time(pool: PgPool) {
    let builds = [finished(&pool, &[]).await, finished(&pool, &[]).await];
    kiln::store::changes::number(&pool).await.expect("numbers");
    sqlx::query("UPDATE build_changes SET at = now() - interval '31 days' WHERE build_id = $1")
        .bind(builds[0].0)
        .execute(&pool)
        .await
        .expect("writes");
    sqlx::query(
        "INSERT INTO tokens (id, project, name, hash, scopes, expires_at)
         SELECT gen_random_uuid(), 'default', 't', sha256(days::text::bytea), ARRAY['builds:read'],
                now() - make_interval(days => days)
         FROM unnest(ARRAY[-1, 1, 29, 31, 400]) AS days
         UNION ALL SELECT gen_random_uuid(), 'default', 't', sha256('never'), ARRAY['builds:read'], NULL",
    )
    .execute(&pool)
    .await
    .expect("writes");
    keeper(&pool, None, 90).keep(&CancellationToken::new()).await;
    assert_eq!(count(&pool, "build_changes").await, 2);
    assert_eq!(
        count(&pool, &format!("build_changes WHERE build_id = '{}'", builds[0])).await,
        0
    );
    assert_eq!(count(&pool, "tokens").await, 4);
}

#[sqlx::test]
async fn it_runs_by_itself_until_it_is_told_to_stop(pool: PgPool) {
    let build = BuildId::new();
    create_as(&pool, build).await;
    let finished_at = Utc::now() - TimeDelta::days(5);
    kiln::store::builds::cancel(&pool, build, finished_at)
        .await
        .expect("cancels");
    let store = Arc::new(Store::default());
    let stop = CancellationToken::new();
    let keeper = Keeper {
        archive_after_seconds: 0,
        interval_seconds: 1,
        ..keeper(&pool, Some(archive(&store)), 30)
    };
    let running = tokio::spawn(keeper.run(stop.clone()));
    let moved = async {
        while rows(&pool, build).await > 0 {
            tokio::task::yield_now().await;
        }
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, moved).await.expect("moved in time");
    stop.cancel();
    tokio::time::timeout(limit, running)
        .await
        .expect("ends")
        .expect("no panic");
}
