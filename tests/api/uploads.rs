//! `/v1/uploads`, and what an attempt gets of them.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt as _, stream};
use kiln::{
    domain::{
        attempt_token::Purpose,
        id::{AttemptId, ReplicaId, UploadId},
        project::Scope,
        queue::ProjectLimits,
        spec::MemoryBytes,
    },
    http::{Random, UploadConfig, Uploads},
    store::{attempt_keys::AttemptKeys, leases, queue, uploads},
};
use reqwest::{Body, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;

use super::support::{Answer, Caller, TestApp, minimal, pointers, soon};

mod slow;

/// A tar archive of files, made by hand so that the test doesn't share a mistake with what it tests.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].fill(b' ');
        header[156] = b'0';
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// An archive that takes several pieces in the database and isn't a multiple of them.
fn large() -> Vec<u8> {
    let content: Vec<u8> = (0..600_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    tar(&[("Dockerfile", b"FROM scratch\n"), ("data", &content)])
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

async fn send(caller: &Caller<'_>, archive: impl Into<Body>) -> Value {
    let answer = Answer::of(caller.post("/v1/uploads").body(archive)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    answer.json()
}

fn build_of(upload: &Value) -> Value {
    let mut request = minimal();
    request["source"] = json!({"type": "upload", "id": upload["id"], "subdir": "app"});
    request
}

async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("a number")
}

async fn expire(pool: &PgPool) {
    sqlx::query("UPDATE uploads SET expires_at = now() - interval '1 second'")
        .execute(pool)
        .await
        .expect("updates");
}

#[sqlx::test]
async fn an_archive_is_stored_and_described(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let archive = large();
    let upload = send(&caller, archive.clone()).await;
    assert_eq!(upload["sha256"], sha256(&archive));
    assert_eq!(upload["bytes"], archive.len());
    assert_eq!(upload["project"], "default");
    let created: DateTime<Utc> = upload["created_at"].as_str().expect("a time").parse().expect("a time");
    let expires: DateTime<Utc> = upload["expires_at"].as_str().expect("a time").parse().expect("a time");
    assert_eq!((expires - created).num_seconds(), 86_400);
    let path = format!("/v1/uploads/{}", upload["id"].as_str().expect("an id"));
    let answer = Answer::of(caller.get(&path)).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, upload.clone()));
    let pieces = count(&pool, "SELECT count(*) FROM upload_chunks").await;
    assert_eq!(usize::try_from(pieces), Ok(archive.len().div_ceil(uploads::CHUNK)));

    let deleted = Answer::of(caller.request(reqwest::Method::DELETE, &path)).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    assert_eq!(count(&pool, "SELECT count(*) FROM upload_chunks").await, 0);
    Answer::of(caller.get(&path)).await.problem(404, "upload_not_found");
    Answer::of(caller.request(reqwest::Method::DELETE, &path))
        .await
        .problem(404, "upload_not_found");
    app.stop().await;
}

#[sqlx::test]
async fn what_is_announced_is_held_against_what_comes(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let archive = tar(&[("Dockerfile", b"FROM scratch\n")]);
    let right = BASE64_STANDARD.encode(Sha256::digest(&archive));
    let wrong = BASE64_STANDARD.encode(Sha256::digest(b"another"));
    let request = |path: &str| caller.post(path).body(archive.clone());
    for (name, value) in [
        ("content-digest", format!("sha-256=:{right}:")),
        ("repr-digest", format!("sha-512=:AAAA:, sha-256=:{right}:")),
        ("digest", format!("SHA-256={right}")),
    ] {
        let answer = Answer::of(request("/v1/uploads").header(name, value)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{name}: {}", answer.text);
    }
    let answer = Answer::of(request(&format!("/v1/uploads?sha256={}", sha256(&archive)))).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let refused = Answer::of(request("/v1/uploads").header("content-digest", format!("sha-256=:{wrong}:"))).await;
    let problem = refused.problem(422, "digest_mismatch");
    assert!(problem["detail"].as_str().expect("words").contains(&sha256(&archive)));
    Answer::of(request(&format!("/v1/uploads?sha256={}", sha256(b"another"))))
        .await
        .problem(422, "digest_mismatch");
    Answer::of(request("/v1/uploads?sha256=ABC"))
        .await
        .problem(400, "invalid_query");
    Answer::of(request("/v1/uploads?digest=1"))
        .await
        .problem(400, "invalid_query");
    Answer::of(request("/v1/uploads").header("content-digest", "sha-256=:x:"))
        .await
        .problem(400, "invalid_header");
    assert_eq!(count(&pool, "SELECT count(*) FROM uploads").await, 4);
    app.stop().await;
}

#[sqlx::test]
async fn only_sound_archives_are_taken(pool: PgPool) {
    let app = TestApp::start_with(&pool, |app| {
        let config = UploadConfig {
            max_bytes: MemoryBytes(100_000),
            max_unpacked_bytes: MemoryBytes(50_000),
            max_entries: 3,
            max_project_bytes: MemoryBytes(4000),
            ..UploadConfig::default()
        };
        app.uploads = Arc::new(Uploads::new(config, true));
    })
    .await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let mut cut = tar(&[("a", &[1; 2000])]);
    cut.truncate(1500);
    for (archive, words) in [
        (b"PK\x03\x04".to_vec(), "it is a zip file"),
        (b"{}".to_vec(), "is not a tar archive"),
        (Vec::new(), "holds no file"),
        (
            tar(&[("../up", b"x")]),
            "the archive holds `../up`, which has a path with `..`",
        ),
        (tar(&[("/etc/passwd", b"x")]), "absolute path"),
        (tar(&[("a", b"x"), ("a/b", b"x")]), "not a folder"),
        (
            tar(&[("a", b""), ("b", b""), ("c", b""), ("d", b"")]),
            "more than 3 files",
        ),
        (tar(&[("a", &vec![0; 50_001])]), "unpacks to more than 50000 bytes"),
        (cut, "is cut off"),
    ] {
        let problem = Answer::of(caller.post("/v1/uploads").body(archive)).await;
        let problem = problem.problem(422, "invalid_archive");
        assert!(problem["detail"].as_str().expect("words").contains(words), "{problem}");
    }
    // Told before anything is read, and found while it is read.
    let too_large = vec![0; 100_001];
    Answer::of(caller.post("/v1/uploads").body(too_large.clone()))
        .await
        .problem(413, "upload_too_large");
    let pieces = stream::iter(
        too_large
            .chunks(9000)
            .map(|piece| Ok::<_, std::io::Error>(piece.to_vec()))
            .collect::<Vec<_>>(),
    );
    Answer::of(caller.post("/v1/uploads").body(Body::wrap_stream(pieces)))
        .await
        .problem(413, "upload_too_large");
    // What a project may keep in all.
    send(&caller, tar(&[("a", b"x")])).await;
    Answer::of(caller.post("/v1/uploads").body(tar(&[("a", b"x")])))
        .await
        .problem(409, "uploads_full");
    assert_eq!(count(&pool, "SELECT count(*) FROM uploads").await, 1);
    app.stop().await;
}

/// A body that ends in the middle, as when the caller is gone.
struct Broken {
    left: usize,
    read: Arc<AtomicUsize>,
}

impl Stream for Broken {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.left == 0 {
            return Poll::Ready(Some(Err(std::io::Error::other("gone"))));
        }
        self.left -= 1;
        self.read.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Bytes::from(vec![7; 64 << 10]))))
    }
}

#[sqlx::test]
async fn a_broken_off_upload_leaves_nothing(pool: PgPool) {
    let spool = tempfile::tempdir().expect("a folder");
    let folder = spool.path().to_owned();
    let app = TestApp::start_with(&pool, |app| {
        let config = UploadConfig {
            spool_dir: Some(folder),
            max_concurrent: 1,
            ..UploadConfig::default()
        };
        app.uploads = Arc::new(Uploads::new(config, true));
    })
    .await;
    let caller = app.caller(Scope::BuildsWrite).await;
    for _ in 0..3 {
        let read = Arc::new(AtomicUsize::new(0));
        let body = Broken {
            left: 20,
            read: Arc::clone(&read),
        };
        let outcome = soon(
            "the end",
            caller.post("/v1/uploads").body(Body::wrap_stream(body)).send(),
        )
        .await;
        assert!(outcome.is_err());
        assert_eq!(read.load(Ordering::Relaxed), 20);
    }
    // Its turn is over, too: there is room for the next.
    send(&caller, tar(&[("a", b"x")])).await;
    assert_eq!(count(&pool, "SELECT count(*) FROM uploads").await, 1);
    assert_eq!(std::fs::read_dir(spool.path()).expect("a folder").count(), 0);
    app.stop().await;
}

#[sqlx::test]
async fn uploads_belong_to_their_project(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller_of("owner", Scope::BuildsWrite).await;
    let other = app.caller_of("other", Scope::ProjectAdmin).await;
    let admin = app.caller_of("third", Scope::Admin).await;
    let archive = tar(&[("Dockerfile", b"FROM scratch\n")]);
    let upload = send(&owner, archive.clone()).await;
    let path = format!("/v1/uploads/{}", upload["id"].as_str().expect("an id"));
    Answer::of(other.get(&path)).await.problem(404, "upload_not_found");
    Answer::of(other.request(reqwest::Method::DELETE, &path))
        .await
        .problem(404, "upload_not_found");
    let refused = Answer::of(other.post("/v1/builds").json(&build_of(&upload))).await;
    assert_eq!(pointers(&refused.problem(422, "invalid_request")), ["/source/id"]);
    Answer::of(other.post("/v1/uploads?project=owner").body(archive.clone()))
        .await
        .problem(400, "invalid_query");
    assert_eq!(Answer::of(admin.get(&path)).await.status, StatusCode::OK);
    let for_owner = Answer::of(admin.post("/v1/uploads?project=owner").body(archive.clone())).await;
    assert_eq!(for_owner.json()["project"], "owner");
    Answer::of(admin.post("/v1/uploads?project=nobody").body(archive.clone()))
        .await
        .problem(400, "invalid_query");
    let reader = app.caller_of("owner", Scope::BuildsRead).await;
    assert_eq!(Answer::of(reader.get(&path)).await.status, StatusCode::OK);
    for refused in [
        reader.request(reqwest::Method::DELETE, &path),
        reader.post("/v1/uploads").body(archive.clone()),
    ] {
        Answer::of(refused).await.problem(403, "insufficient_scope");
    }
    Answer::of(app.anonymous().post("/v1/uploads").body(archive))
        .await
        .problem(401, "unauthenticated");
    Answer::of(owner.get("/v1/uploads/x"))
        .await
        .problem(404, "upload_not_found");
    app.stop().await;
}

#[sqlx::test]
async fn uploads_expire_unless_a_build_needs_them(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let upload = send(&caller, tar(&[("Dockerfile", b"FROM scratch\n")])).await;
    let path = format!("/v1/uploads/{}", upload["id"].as_str().expect("an id"));
    assert_eq!(uploads::sweep(&pool).await.expect("sweeps"), 0);

    // A build postpones the end, and holds it off while it is live.
    sqlx::query("UPDATE uploads SET expires_at = now() + interval '1 hour'")
        .execute(&pool)
        .await
        .expect("updates");
    let answer = Answer::of(caller.post("/v1/builds").json(&build_of(&upload))).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let build = answer.json();
    assert_eq!(
        build["spec"]["source"],
        json!({"type": "upload", "id": upload["id"], "subdir": "app"})
    );
    let left = "SELECT extract(epoch FROM expires_at - now())::bigint FROM uploads";
    assert!(count(&pool, left).await > 80_000);
    Answer::of(caller.request(reqwest::Method::DELETE, &path))
        .await
        .problem(409, "upload_in_use");
    expire(&pool).await;
    assert_eq!(uploads::sweep(&pool).await.expect("sweeps"), 0);

    // Over time, no build can begin with it, but what runs has it.
    Answer::of(caller.get(&path)).await.problem(404, "upload_not_found");
    let late = Answer::of(caller.post("/v1/builds").json(&build_of(&upload))).await;
    let problem = late.problem(422, "invalid_request");
    assert!(
        problem["errors"][0]["detail"]
            .as_str()
            .expect("words")
            .contains("send the archive again")
    );
    let with_key = caller
        .post("/v1/builds")
        .header("idempotency-key", "k")
        .json(&build_of(&upload));
    Answer::of(with_key).await.problem(422, "invalid_request");

    let cancel = format!("/v1/builds/{}/cancel", build["id"].as_str().expect("an id"));
    assert_eq!(Answer::of(caller.post(&cancel)).await.status, StatusCode::ACCEPTED);
    let retry = format!("/v1/builds/{}/retry", build["id"].as_str().expect("an id"));
    // Whether it is only over or gone already makes no difference.
    for deleted in [1, 0] {
        let refused = Answer::of(caller.post(&retry)).await.problem(422, "invalid_request");
        assert_eq!(pointers(&refused), ["/source/id"]);
        let words = refused["errors"][0]["detail"].as_str().expect("words");
        assert!(words.contains("gone") && words.contains("create a build"), "{words}");
        assert_eq!(uploads::sweep(&pool).await.expect("sweeps"), deleted);
    }
    assert_eq!(count(&pool, "SELECT count(*) FROM upload_chunks").await, 0);
    assert_eq!(count(&pool, "SELECT count(*) FROM builds").await, 1);
    app.stop().await;
}

#[sqlx::test]
async fn where_pods_cannot_reach_the_service_uploads_are_refused(pool: PgPool) {
    let app = TestApp::start_with(&pool, |app| {
        app.uploads = Arc::new(Uploads::new(UploadConfig::default(), false));
    })
    .await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let upload = send(&caller, tar(&[("Dockerfile", b"FROM scratch\n")])).await;
    let problem = Answer::of(caller.post("/v1/builds").json(&build_of(&upload))).await;
    let problem = problem.problem(422, "invalid_request");
    assert_eq!(pointers(&problem), ["/source/type"]);
    assert!(
        problem["errors"][0]["detail"]
            .as_str()
            .expect("words")
            .contains("`agent_url`")
    );
    app.stop().await;
}

#[sqlx::test]
async fn an_attempt_gets_its_archive_in_parts_and_nothing_else(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let archive = large();
    let upload = send(&caller, archive.clone()).await;
    let claim = |request: Value| {
        let (pool, caller) = (&pool, &caller);
        async move {
            let answer = Answer::of(caller.post("/v1/builds").json(&request)).await;
            assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
            let owner = ReplicaId::new();
            let lease = std::time::Duration::from_mins(1);
            leases::register(pool, owner, "test", lease).await.expect("registers");
            let limits = queue::ClaimLimits {
                batch: 1,
                live: 99,
                project: ProjectLimits::NONE,
            };
            let claimed = queue::claim(pool, owner, limits, "kiln-", Utc::now())
                .await
                .expect("claims");
            claimed.into_iter().next().expect("one").lease.attempt
        }
    };
    let attempt = claim(build_of(&upload)).await;
    let another = claim(minimal()).await;
    // Another replica with another candidate finds the same key.
    let keys = AttemptKeys::new(Random::system().bytes());
    let key = keys.get(&pool).await.expect("a key");
    let token = |attempt: AttemptId| key.token(attempt, Purpose::Upload).expose().to_owned();
    let get = |attempt: AttemptId, token: &str| {
        app.bearer(token)
            .get(&format!("/internal/v1/attempts/{attempt}/upload"))
    };

    let response = get(attempt, &token(attempt)).send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-length"], archive.len().to_string());
    let digest = format!("sha-256=:{}:", BASE64_STANDARD.encode(Sha256::digest(&archive)));
    assert_eq!(response.headers()["repr-digest"], digest);
    assert!(response.bytes().await.expect("whole") == archive);

    for from in [1, uploads::CHUNK - 1, uploads::CHUNK, archive.len() - 1] {
        let request = get(attempt, &token(attempt)).header("range", format!("bytes={from}-"));
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        let range = format!("bytes {from}-{}/{}", archive.len() - 1, archive.len());
        assert_eq!(response.headers()["content-range"], range);
        assert!(response.bytes().await.expect("whole") == archive[from..]);
    }
    let beyond = get(attempt, &token(attempt)).header("range", format!("bytes={}-", archive.len()));
    Answer::of(beyond).await.problem(416, "range_not_satisfiable");

    // What is wrong with the caller.
    Answer::of(get(attempt, "kilnattempt_00"))
        .await
        .problem(404, "not_found");
    Answer::of(get(attempt, &token(another)))
        .await
        .problem(404, "not_found");
    Answer::of(get(another, &token(attempt)))
        .await
        .problem(404, "not_found");
    Answer::of(get(another, &token(another)))
        .await
        .problem(404, "upload_not_found");
    let later = AttemptId {
        number: attempt.number + 1,
        ..attempt
    };
    Answer::of(get(later, &token(later)))
        .await
        .problem(404, "upload_not_found");
    let path = format!("/internal/v1/attempts/{attempt}/upload");
    Answer::of(app.anonymous().get(&path))
        .await
        .problem(401, "unauthenticated");
    let callers = caller.get(&path);
    Answer::of(callers).await.problem(404, "not_found");
    Answer::of(app.bearer(&token(attempt)).get("/v1/builds"))
        .await
        .problem(401, "unauthenticated");

    // An upload that vanishes while it is sent: the connection is cut.
    let response = get(attempt, &token(attempt)).send().await.expect("an answer");
    let id: UploadId = upload["id"].as_str().expect("an id").parse().expect("an id");
    sqlx::query("DELETE FROM upload_chunks WHERE upload_id = $1 AND number > 0")
        .bind(id.0)
        .execute(&pool)
        .await
        .expect("deletes");
    let cut = get(attempt, &token(attempt))
        .send()
        .await
        .expect("an answer")
        .bytes()
        .await;
    assert!(cut.is_err());
    drop(response.bytes_stream().collect::<Vec<_>>().await);

    // Once the attempt is over, its token opens nothing.
    sqlx::query("UPDATE attempts SET state = 'cancelled', finished_at = now()")
        .execute(&pool)
        .await
        .expect("updates");
    Answer::of(get(attempt, &token(attempt)))
        .await
        .problem(404, "upload_not_found");
    app.stop().await;
}
