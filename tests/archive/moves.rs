//! Readers don't notice where a journal is.

use std::sync::{Arc, atomic::Ordering};

use chrono::TimeDelta;
use futures::TryStreamExt as _;
use kiln::{
    domain::{event::Event, id::BuildId},
    journal::{History, archive::Archive},
    store::archives,
};
use object_store::{ObjectStore as _, local::LocalFileSystem};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use sqlx::PgPool;
use url::Url;

use super::{
    store::Store,
    support::{append, archive, create_as, finish, finished, log, move_due, output, read, rows},
};

#[sqlx::test]
async fn an_archived_journal_reads_as_before_from_any_number(pool: PgPool) {
    let build = finished(&pool, &output(30)).await;
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    let history = History::new(pool.clone()).with_archive(Some(archive.clone()));
    let before = read(&history, build, 0).await.expect("reads");
    assert!(rows(&pool, build).await > 30);

    move_due(&pool, &archive).await.expect("moves");
    assert_eq!(rows(&pool, build).await, 0);
    assert_eq!(store.names().await.len(), 1);
    for after in 0..=before.len() {
        let expected = &before[after..];
        let after = i64::try_from(after).expect("small");
        assert_eq!(
            read(&history, build, after).await.expect("reads"),
            expected,
            "after {after}"
        );
    }
    assert_eq!(read(&history, build, i64::MAX).await.expect("reads"), []);
    let archived = archives::get(&pool, build).await.expect("reads").expect("archived");
    assert_eq!(archived.head, before.last().expect("entries").0);
    assert_eq!(archives::backlog(&pool, 3600).await.expect("reads"), (0, None));
}

/// Any journal, in any rows, read from any number.
#[sqlx::test]
async fn archives_read_as_tables_do(pool: PgPool) {
    let text = prop_oneof![
        6 => ".{0,60}".prop_map(|text| text + "\n"),
        1 => (1_usize..40).prop_map(|count| "0123456789abcdef".repeat(count * 1000)),
    ];
    let row = proptest::collection::vec(text.prop_map(log), 1..8);
    let journals = proptest::collection::vec(row, 0..40);
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    let mut runner = TestRunner::new(Config::default());
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    let history = History::new(pool.clone()).with_archive(Some(archive.clone()));
    for _ in 0..cases.unwrap_or(24) {
        let journal = journals.new_tree(&mut runner).expect("a journal").current();
        let build = finished(&pool, &journal).await;
        let table = read(&history, build, 0).await.expect("reads");
        move_due(&pool, &archive).await.expect("moves");
        assert_eq!(rows(&pool, build).await, 0);
        let whole = read(&history, build, 0).await.expect("reads");
        assert!(whole == table, "{journal:?}");
        let after = (0..=table.len()).new_tree(&mut runner).expect("a number").current();
        let rest = read(&history, build, i64::try_from(after).expect("small"))
            .await
            .expect("reads");
        assert!(rest == table[after..], "after {after}: {journal:?}");
    }
}

#[sqlx::test]
async fn a_reader_goes_on_in_the_archive_when_the_rows_go(pool: PgPool) {
    let build = finished(&pool, &output(60)).await;
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    let history = History::new(pool.clone()).with_archive(Some(archive.clone()));
    let expected = read(&history, build, 0).await.expect("reads");
    let mut entries = history.read(build, 0).await.expect("reads");
    assert!(!entries.is_empty() && entries.len() < expected.len());
    move_due(&pool, &archive).await.expect("moves");
    let position = entries.last().expect("entries").0;
    entries.extend(read(&history, build, position).await.expect("reads"));
    assert_eq!(entries, expected);
}

#[sqlx::test]
async fn a_reader_from_the_end_reads_a_small_part(pool: PgPool) {
    // Text that doesn't compress to nothing, so that the object is written in several pieces.
    let mut noise = 1_u64;
    let rows: Vec<Vec<Event>> = (0..600)
        .map(|_| {
            let text = (0..2000).map(|_| {
                noise = noise
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                format!("{noise:016x}")
            });
            vec![log(text.collect::<String>())]
        })
        .collect();
    let build = finished(&pool, &rows).await;
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    move_due(&pool, &archive).await.expect("moves");
    let archived = archives::get(&pool, build).await.expect("reads").expect("archived");
    let size = usize::try_from(archived.bytes).expect("small");
    assert!(size > 8 << 20, "{size} bytes");

    // Another process, which knows no index yet.
    let archive = super::support::archive(&store);
    let history = History::new(pool.clone()).with_archive(Some(archive));
    let begun = store.bytes_read.load(Ordering::SeqCst);
    let last = read(&history, build, archived.head - 3).await.expect("reads");
    assert_eq!(last.len(), 3);
    let took = store.bytes_read.load(Ordering::SeqCst) - begun;
    assert!(took < size / 4, "{took} of {size} bytes");
}

#[sqlx::test]
async fn only_builds_that_are_over_for_long_enough_are_moved(pool: PgPool) {
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    let (live, young, old) = (BuildId::new(), BuildId::new(), BuildId::new());
    for build in [live, young, old] {
        create_as(&pool, build).await;
        append(&pool, build, &output(1)).await;
    }
    finish(&pool, young, TimeDelta::minutes(50)).await;
    finish(&pool, old, TimeDelta::minutes(70)).await;
    move_due(&pool, &archive).await.expect("moves");
    assert_eq!(rows(&pool, old).await, 0);
    assert!(rows(&pool, young).await > 0);
    assert!(rows(&pool, live).await > 0);
}

#[sqlx::test]
async fn several_replicas_share_the_work(pool: PgPool) {
    let mut builds = Vec::new();
    for _ in 0..24 {
        builds.push(finished(&pool, &output(2)).await);
    }
    let store = Arc::new(Store::default());
    let archive = archive(&store);
    let movers = (0..4).map(|_| move_due(&pool, &archive));
    for moved in futures::future::join_all(movers).await {
        moved.expect("moves");
    }
    for build in builds {
        assert_eq!(rows(&pool, build).await, 0);
    }
    assert_eq!(store.names().await.len(), 24);
}

#[sqlx::test]
async fn a_folder_holds_one_ordinary_zstd_file_a_build(pool: PgPool) {
    let build = finished(&pool, &output(10)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let url = Url::from_directory_path(folder.path().join("new")).expect("an address");
    let archive = Archive::open(&url).expect("a folder");
    let history = History::new(pool.clone()).with_archive(Some(archive.clone()));
    let before = read(&history, build, 0).await.expect("reads");
    move_due(&pool, &archive).await.expect("moves");
    assert_eq!(rows(&pool, build).await, 0);
    assert_eq!(read(&history, build, 0).await.expect("reads"), before);

    let files = LocalFileSystem::new_with_prefix(folder.path()).expect("a folder");
    let objects: Vec<_> = files.list(None).try_collect().await.expect("lists");
    let [object] = objects.as_slice() else {
        panic!("{objects:?}")
    };
    assert!(
        object.location.as_ref().ends_with(&format!("/{build}.1.jsonl.zst")),
        "{object:?}"
    );
    let file = std::fs::read(folder.path().join(object.location.as_ref())).expect("the file");
    let text = zstd::decode_all(file.as_slice()).expect("zstd");
    let entries: Vec<Event> = String::from_utf8(text)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("an entry"))
        .collect();
    assert!(entries.iter().eq(before.iter().map(|(_, event)| event)));
}
