//! Partitions of the journal: made ahead, pruned by every plan, dropped when nobody needs them; and whatever the clocks
//! say, nothing is lost.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use kiln::{
    domain::id::BuildId,
    journal::History,
    store::{
        self,
        partitions::{self, Kept, Period},
    },
};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use super::{
    store::Store,
    support::{append, archive, create_as, finish, finished, id_at, move_due, output, read, rows},
};

async fn keep(pool: &PgPool, now: DateTime<Utc>) -> Kept {
    let kept = partitions::keep(pool, Period::Week, now).await.expect("keeps");
    kept.expect("nobody else is at it")
}

/// Tables that hold rows of a build.
async fn tables_of(pool: &PgPool, build: BuildId) -> Vec<String> {
    sqlx::query_scalar("SELECT DISTINCT tableoid::regclass::text FROM journal WHERE build_id = $1")
        .bind(build.0)
        .fetch_all(pool)
        .await
        .expect("reads")
}

async fn count(pool: &PgPool) -> usize {
    let mut connection = pool.acquire().await.expect("connects");
    partitions::list(&mut connection).await.expect("lists").len()
}

#[sqlx::test]
async fn partitions_are_made_ahead_and_once(pool: PgPool) {
    let now = Utc::now();
    let first = keep(&pool, now).await;
    // Three weeks from the present one on; the first partition reaches to the end of the present one.
    assert_eq!(first.made.len(), 2, "{first:?}");
    assert_eq!(first.count, 4);
    assert_eq!(keep(&pool, now).await.made, [] as [String; 0]);
    // What is in use stays, however much of the present week is over.
    let present = id_at(now);
    create_as(&pool, present).await;
    let later = keep(&pool, now + TimeDelta::weeks(1)).await;
    assert_eq!(later.made.len(), 1, "{later:?}");
    assert_ne!(tables_of(&pool, present).await, ["journal_default"]);
    for days in 1..20 {
        let build = id_at(now + TimeDelta::days(days));
        create_as(&pool, build).await;
        assert_ne!(tables_of(&pool, build).await, ["journal_default"], "in {days} days");
    }
    // After a long time without a service those between aren't made: nobody will write to them.
    let much_later = keep(&pool, now + TimeDelta::weeks(100)).await;
    assert_eq!(much_later.made.len(), 3, "{much_later:?}");
}

#[sqlx::test]
async fn days_can_follow_weeks(pool: PgPool) {
    let now = Utc::now();
    keep(&pool, now).await;
    let later = now + TimeDelta::weeks(2);
    let kept = partitions::keep(&pool, Period::Day, later)
        .await
        .expect("keeps")
        .expect("free");
    let again = partitions::keep(&pool, Period::Day, later + TimeDelta::weeks(1)).await;
    let again = again.expect("keeps").expect("free");
    assert!(kept.made.len() <= 3 && again.made.len() == 3, "{kept:?}, {again:?}");
}

#[sqlx::test]
async fn only_one_replica_changes_partitions_at_a_time(pool: PgPool) {
    let now = Utc::now();
    let keepers = (0..4).map(|_| partitions::keep(&pool, Period::Week, now));
    let mut made = Vec::new();
    for kept in futures::future::join_all(keepers).await {
        made.extend(kept.expect("keeps").unwrap_or_default().made);
    }
    made.sort();
    let expected = made.clone();
    made.dedup();
    assert_eq!(made, expected);
    assert_eq!(count(&pool).await, 4);
}

/// The partitions that a statement has to look into.
fn scanned(plan: &Value, found: &mut Vec<String>) {
    match plan {
        Value::Object(node) => {
            if let Some(relation) = node.get("Relation Name").and_then(Value::as_str)
                && relation.starts_with("journal_")
                && node.get("Actual Loops").and_then(Value::as_f64) > Some(0.0)
            {
                found.push(relation.to_owned());
            }
            node.values().for_each(|value| scanned(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| scanned(value, found)),
        _ => {}
    }
}

#[sqlx::test]
async fn every_read_looks_into_one_partition(pool: PgPool) {
    let now = Utc::now();
    keep(&pool, now).await;
    let mut builds = Vec::new();
    for week in 0..3 {
        let build = id_at(now + TimeDelta::weeks(week));
        create_as(&pool, build).await;
        append(&pool, build, &output(3)).await;
        builds.push(build);
    }
    let mut connection = PgConnection::connect_with(&pool.connect_options())
        .await
        .expect("connects");
    let run = async |connection: &mut PgConnection, statement: String| {
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(connection)
            .await
            .expect("runs");
    };
    run(
        &mut connection,
        "PREPARE page (uuid, bigint, bigint) AS SELECT first_seq, last_seq, codec, body FROM journal
         WHERE build_id = $1 AND last_seq > $2 ORDER BY last_seq LIMIT $3;
         PREPARE gone (uuid) AS DELETE FROM journal WHERE build_id = $1"
            .to_owned(),
    )
    .await;
    // Plans for these values, and plans for any.
    for mode in ["force_custom_plan", "force_generic_plan"] {
        run(&mut connection, format!("SET plan_cache_mode = {mode}")).await;
        for build in &builds {
            let own = tables_of(&pool, *build).await;
            for statement in [format!("page('{build}', 1, 16)"), format!("gone('{build}')")] {
                run(&mut connection, "BEGIN".to_owned()).await;
                let explain = format!("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE {statement}");
                let plan: Value = sqlx::query_scalar(AssertSqlSafe(explain))
                    .fetch_one(&mut connection)
                    .await
                    .expect("a plan");
                run(&mut connection, "ROLLBACK".to_owned()).await;
                let mut found = Vec::new();
                scanned(&plan, &mut found);
                found.dedup();
                assert_eq!(found, own, "{mode}, {statement}: {plan:#}");
            }
        }
    }
}

#[sqlx::test]
async fn clocks_that_are_off_lose_nothing(pool: PgPool) {
    let now = Utc::now();
    keep(&pool, now).await;
    let history = History::new(pool.clone());
    let offsets = [
        TimeDelta::hours(-30),
        TimeDelta::hours(-5),
        TimeDelta::hours(5),
        TimeDelta::weeks(8),
        TimeDelta::days(-3000),
    ];
    let mut expected = Vec::new();
    for offset in offsets {
        let build = id_at(now + offset);
        create_as(&pool, build).await;
        append(&pool, build, &output(4)).await;
        expected.push((build, read(&history, build, 0).await.expect("reads")));
    }
    // Far ahead of what there is.
    assert_eq!(tables_of(&pool, expected[3].0).await, ["journal_default"]);
    // Its time comes, and its entries move.
    for weeks in 1..=8 {
        keep(&pool, now + TimeDelta::weeks(weeks)).await;
        for (build, entries) in &expected {
            assert_eq!(
                read(&history, *build, 0).await.expect("reads"),
                *entries,
                "after {weeks} weeks"
            );
        }
    }
    assert_ne!(tables_of(&pool, expected[3].0).await, ["journal_default"]);
    for (build, entries) in &expected {
        append(&pool, *build, &output(1)).await;
        assert!(read(&history, *build, 0).await.expect("reads").len() > entries.len());
    }
}

#[sqlx::test]
async fn a_partition_goes_when_no_build_needs_it(pool: PgPool) {
    let now = Utc::now();
    let archived = finished(&pool, &output(3)).await;
    let live = BuildId::new();
    create_as(&pool, live).await;
    append(&pool, live, &output(3)).await;
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    let history = History::new(pool.clone()).with_archive(Some(archive.clone()));
    let expected = read(&history, archived, 0).await.expect("reads");
    move_due(&pool, &archive).await.expect("moves");

    // Years later one build is still live: what it has is kept, and all that comes.
    let later = now + TimeDelta::weeks(200);
    assert_eq!(keep(&pool, later).await.dropped, [] as [String; 0]);
    let entries = read(&history, live, 0).await.expect("reads");
    append(&pool, live, &output(2)).await;
    assert!(read(&history, live, 0).await.expect("reads").len() > entries.len());
    let own = tables_of(&pool, live).await;
    finish(&pool, live, TimeDelta::days(1)).await;
    let whole = read(&history, live, 0).await.expect("reads");
    assert_eq!(
        keep(&pool, later).await.dropped,
        [] as [String; 0],
        "it isn't archived yet"
    );

    move_due(&pool, &archive).await.expect("moves");
    assert_eq!(keep(&pool, later).await.dropped, own);
    assert_eq!(read(&history, archived, 0).await.expect("reads"), expected);
    assert_eq!(read(&history, live, 0).await.expect("reads"), whole);
    // An id of that time is still taken.
    let late = id_at(now);
    create_as(&pool, late).await;
    append(&pool, late, &output(1)).await;
    assert_eq!(tables_of(&pool, late).await, ["journal_default"]);
    assert!(rows(&pool, late).await > 1);
}

#[sqlx::test]
async fn a_partition_that_is_in_use_is_left_for_later(pool: PgPool) {
    let later = Utc::now() + TimeDelta::weeks(10);
    keep(&pool, later).await;
    let mut reader = pool.begin().await.expect("begins");
    sqlx::query("SELECT count(*) FROM journal")
        .execute(&mut *reader)
        .await
        .expect("reads");
    // What is to be dropped is locked: neither it nor others behind it wait for long.
    let later = later + TimeDelta::weeks(1);
    let outcome = partitions::keep(&pool, Period::Week, later).await;
    assert!(matches!(outcome, Err(store::Error::Database(_))), "{outcome:?}");
    reader.rollback().await.expect("ends");
    keep(&pool, later).await;
}

/// The table as earlier versions had it, with what it held.
#[sqlx::test(migrations = false)]
async fn the_migration_keeps_every_entry(pool: PgPool) {
    let migrator = sqlx::migrate!();
    let this = migrator
        .iter()
        .find(|migration| migration.description == "history")
        .expect("there")
        .version;
    let until = |last: i64| {
        let migrations = migrator
            .iter()
            .filter(move |migration| migration.version <= last)
            .cloned();
        sqlx::migrate::Migrator::with_migrations(migrations.collect())
    };
    until(this - 1).run(&pool).await.expect("migrates");
    let now = Utc::now();
    let mut before = Vec::new();
    for offset in [-400, -10, 0, 5, 400] {
        let id = id_at(now + TimeDelta::days(offset)).0;
        for seq in 1..=3_i64 {
            sqlx::query("INSERT INTO journal VALUES ($1, $2, $2, 0, $3)")
                .bind(id)
                .bind(seq)
                .bind(format!("{id} {seq}").as_bytes())
                .execute(&pool)
                .await
                .expect("writes");
            before.push((id, seq, format!("{id} {seq}").into_bytes()));
        }
    }
    until(this).run(&pool).await.expect("migrates");
    let after: Vec<(uuid::Uuid, i64, Vec<u8>)> =
        sqlx::query_as("SELECT build_id, last_seq, body FROM journal ORDER BY build_id, last_seq")
            .fetch_all(&pool)
            .await
            .expect("reads");
    assert_eq!(after, before);
    keep(&pool, now).await;
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM journal")
        .fetch_one(&pool)
        .await
        .expect("reads");
    assert_eq!(kept, 15);
}
