//! `GET /v1/builds/{id}/queue`.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use kiln::{
    domain::{
        build::{Pending, PendingKind},
        failure::FailureCode,
        id::ReplicaId,
        project::Scope,
    },
    store::{leases, waiting},
};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::api::{
    support::{Answer, Caller, TestApp, id},
    worker::Hand,
};

async fn look(caller: &Caller<'_>, build: &Value) -> Value {
    let answer = Answer::of(caller.get(&format!("/v1/builds/{}/queue", id(build)))).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().expect("a time").parse().expect("RFC 3339")
}

#[sqlx::test]
async fn a_place_in_the_queue_goes_by_priority_and_age(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let first = caller.create().await;
    app.caller_of("other", Scope::BuildsWrite).await.create().await;
    let mut request = crate::api::support::minimal();
    request["priority"] = json!(1);
    Answer::of(caller.post("/v1/builds").json(&request)).await;
    let last = caller.create().await;
    let seen = look(&caller, &first).await;
    assert_eq!(
        (&seen["state"], &seen["position"]),
        (&json!("queued"), &json!({"project": 2, "all": 2}))
    );
    assert_eq!(look(&caller, &last).await["position"], json!({"project": 3, "all": 4}));
    // There is no history yet.
    assert_eq!(seen["estimate"], Value::Null);
    app.stop().await;
}

#[sqlx::test]
async fn what_blocks_a_build_is_told(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let build = caller.create().await;
    let blocked = || async { look(&caller, &build).await["blocked_by"].clone() };
    assert_eq!(blocked().await["kind"], "no_worker");

    let worker = ReplicaId::new();
    leases::register(&pool, worker, "w", Duration::from_mins(1))
        .await
        .expect("registers");
    assert_eq!(blocked().await, Value::Null);
    waiting::set_readiness(&pool, worker, Some("the namespace is missing"))
        .await
        .expect("stores");
    assert_eq!(
        blocked().await,
        json!({"kind": "cluster", "message": "no build can be launched: the namespace is missing"})
    );
    waiting::set_readiness(&pool, worker, None).await.expect("stores");

    let mut hand = Hand::claim(&pool, &app.signals).await;
    let starting = look(&caller, &build).await;
    assert_eq!(
        (&starting["position"], &starting["blocked_by"]),
        (&Value::Null, &Value::Null)
    );
    for (kind, name) in [
        (PendingKind::Unscheduled, "unscheduled"),
        (PendingKind::ImagePull, "image_pull"),
        (PendingKind::Starting, "starting"),
    ] {
        let message = "0/2 nodes are available".to_owned();
        let pending = Pending { kind, message };
        waiting::set_pending(&pool, hand.lease(), Some(&pending))
            .await
            .expect("stores");
        assert_eq!(
            blocked().await,
            json!({"kind": name, "message": "0/2 nodes are available"})
        );
    }
    waiting::set_pending(&pool, hand.lease(), None).await.expect("stores");
    assert_eq!(blocked().await, Value::Null);

    // The one place is taken.
    let next = caller.create().await;
    assert_eq!(look(&caller, &next).await["blocked_by"]["kind"], "limit");
    // Only who has the build may say what it waits for.
    let stranger = kiln::store::Lease {
        epoch: 99,
        ..*hand.lease()
    };
    let refused = waiting::set_pending(&pool, &stranger, None).await;
    assert!(matches!(refused, Err(kiln::store::Error::Conflict)), "{refused:?}");

    hand.run().await;
    hand.fail_later(FailureCode::NodeLost).await;
    let seen = blocked().await;
    assert_eq!(seen["kind"], "backoff");
    assert!(
        seen["message"].as_str().is_some_and(|text| text.contains("node_lost")),
        "{seen}"
    );
    app.stop().await;
}

#[sqlx::test]
async fn estimates_rest_on_what_builds_of_the_project_took(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    for (wait, run) in [(10, 100), (20, 200), (90, 900)] {
        let build = caller.create().await;
        let mut hand = Hand::claim(&pool, &app.signals).await;
        hand.run().await;
        hand.succeed().await;
        sqlx::query(
            "UPDATE builds SET started_at = created_at + make_interval(secs => $2),
                               finished_at = created_at + make_interval(secs => $2 + $3) WHERE id = $1::uuid",
        )
        .bind(id(&build))
        .bind(f64::from(wait))
        .bind(f64::from(run))
        .execute(&pool)
        .await
        .expect("updates");
        assert_eq!(look(&caller, &build).await["estimate"], Value::Null);
    }
    let basis = json!({"builds": 3, "median_wait_seconds": 20.0, "median_run_seconds": 200.0});
    let queued = caller.create().await;
    let worker = ReplicaId::new();
    leases::register(&pool, worker, "w", Duration::from_mins(1))
        .await
        .expect("registers");
    let seen = look(&caller, &queued).await["estimate"].clone();
    assert_eq!(seen["basis"], basis);
    let created = time(&queued["created_at"]);
    assert_eq!(time(&seen["starts_at"]), created + TimeDelta::seconds(20));
    assert_eq!(time(&seen["ends_at"]), created + TimeDelta::seconds(220));

    // Behind the limit of one build it is the runs before that count.
    let mut hand = Hand::claim(&pool, &app.signals).await;
    let next = caller.create().await;
    let seen = look(&caller, &next).await["estimate"].clone();
    let wait = time(&seen["starts_at"]) - Utc::now();
    assert!((190..=200).contains(&wait.num_seconds()), "{wait}");
    hand.run().await;
    let seen = look(&caller, &queued).await["estimate"].clone();
    assert_eq!(seen["starts_at"], Value::Null);
    assert!(time(&seen["ends_at"]) > Utc::now());

    // Nothing can be said while the cluster can't be used.
    sqlx::query("UPDATE replicas SET not_ready = 'x'")
        .execute(&pool)
        .await
        .expect("updates");
    let seen = look(&caller, &next).await["estimate"].clone();
    assert_eq!((&seen["starts_at"], &seen["basis"]), (&Value::Null, &basis));
    app.stop().await;
}

#[sqlx::test]
async fn limits_of_the_project_are_told(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let admin = app.caller(Scope::Admin).await;
    let limit = |limits: Value| {
        let request = admin.request(reqwest::Method::PATCH, "/v1/projects/default");
        async move { assert_eq!(Answer::of(request.json(&json!({"limits": limits}))).await.status, 200) }
    };
    limit(json!({"starts_per_minute": 1})).await;
    let first = caller.create().await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    hand.succeed().await;

    let build = caller.create().await;
    let seen = look(&caller, &build).await;
    assert_eq!(seen["blocked_by"]["kind"], "rate_limit", "{seen}");
    let opens: DateTime<Utc> =
        sqlx::query_scalar("SELECT counted_at + interval '1 minute' FROM attempts WHERE build_id = $1::uuid")
            .bind(id(&first))
            .fetch_one(&pool)
            .await
            .expect("reads");
    assert_eq!(time(&seen["estimate"]["starts_at"]), opens);
    let later = look(&caller, &caller.create().await).await;
    assert_eq!(time(&later["estimate"]["starts_at"]), opens + TimeDelta::minutes(1));

    limit(json!({"starts_per_minute": null, "concurrency": 0})).await;
    let seen = look(&caller, &build).await;
    assert_eq!(seen["blocked_by"]["kind"], "project_limit");
    assert_eq!(seen["estimate"]["starts_at"], Value::Null);
    limit(json!({"concurrency": null})).await;
    assert_eq!(look(&caller, &build).await["blocked_by"], Value::Null);
    app.stop().await;
}
