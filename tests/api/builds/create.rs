//! `POST /v1/builds`.

use kiln::domain::project::Scope;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::api::support::{Answer, TestApp, id, minimal, pointers, soon};

#[sqlx::test]
async fn a_build_is_accepted_and_queued(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let answer = Answer::of(caller.post("/v1/builds").json(&minimal())).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let build = answer.json();
    let this = format!("/v1/builds/{}", id(&build));
    assert_eq!(answer.header("location"), this);
    let created_at = build["created_at"].as_str().expect("a time");
    assert!(created_at.ends_with('Z'), "{created_at}");
    assert_eq!(
        build,
        json!({
            "id": build["id"], "project": "default", "state": "queued", "failure": null,
            "spec": {
                "source": {"type": "git", "url": "https://git.example/app.git", "ref": null, "commit": null,
                           "subdir": "", "submodules": false, "credentials": null},
                "dockerfile": "Dockerfile", "template": null, "build_args": {}, "target": null, "platforms": ["linux/amd64"],
                "labels": {}, "images": ["registry.example/team/app:1"], "push": true, "builder": "buildkit",
                "resources": {"cpu": "2", "memory": "4Gi", "disk": "20Gi"}, "timeout_seconds": 3600, "priority": 0,
                "annotations": {}, "registry_credentials": [], "secrets": {}, "ssh": null, "cache": null, "group": null,
            },
            "commit": null, "digest": null, "images": ["registry.example/team/app:1"], "attempts": [],
            "log_bytes": 0,
            "retry_of": null, "retried_by": null, "superseded_by": null, "origin": null,
            "created_at": created_at, "started_at": null, "finished_at": null,
            "links": {"self": this, "events": format!("{this}/events"), "logs": format!("{this}/logs"),
                      "cancel": format!("{this}/cancel"),
                      "retry": format!("{this}/retry"), "queue": format!("{this}/queue")},
        })
    );
    // The dispatcher of this replica hears of it at once.
    soon("the news", app.signals.wait_queued()).await;
    assert_eq!(Answer::of(caller.get(&this)).await.json(), build);
    app.stop().await;
}

#[sqlx::test]
async fn every_invalid_field_is_reported_at_once(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let request = json!({
        "source": {"type": "git", "url": "ext::sh -c id", "ref": "--upload-pack=x"},
        "dockerfile": "../x", "images": ["app:1", 2], "build_args": {"A/B": "x"}, "platforms": ["beos"],
        "resources": {"cpu": "lots"}, "timeout_seconds": -1, "builder": "docker", "cache": true, "imagse": [],
    });
    let answer = Answer::of(caller.post("/v1/builds").json(&request)).await;
    let problem = answer.problem(422, "invalid_request");
    let mut found = pointers(&problem);
    found.sort_unstable();
    assert_eq!(
        found,
        [
            "/build_args/A~1B",
            "/builder",
            "/cache",
            "/dockerfile",
            "/images/0",
            "/images/1",
            "/imagse",
            "/platforms/0",
            "/resources/cpu",
            "/source/ref",
            "/source/url",
            "/timeout_seconds",
        ]
    );
    assert_eq!(problem["detail"], "12 fields are invalid");
    assert_eq!(Answer::of(caller.get("/v1/builds")).await.json()["items"], json!([]));
    app.stop().await;
}

#[sqlx::test]
async fn a_project_that_is_not_the_callers_is_refused_like_one_that_is_not_there(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    app.caller_of("alpha", Scope::BuildsRead).await;
    let caller = app.caller_of("beta", Scope::BuildsWrite).await;
    let admin = app.caller(Scope::Admin).await;
    let ask = |request: RequestBuilder, project: &str| {
        let mut body = minimal();
        body["project"] = json!(project);
        Answer::of(request.json(&body))
    };
    let mut told = Vec::new();
    for (request, project) in [
        (caller.post("/v1/builds"), "alpha"),
        (caller.post("/v1/builds"), "nowhere"),
        (admin.post("/v1/builds"), "nowhere"),
    ] {
        let problem = ask(request, project).await.problem(422, "invalid_request");
        assert_eq!(pointers(&problem), ["/project"]);
        told.push(problem["detail"].as_str().expect("text").replace(project, "…"));
    }
    assert!(told.iter().all(|text| *text == told[0]), "{told:?}");
    assert_eq!(ask(caller.post("/v1/builds"), "beta").await.status, StatusCode::CREATED);
    assert_eq!(ask(admin.post("/v1/builds"), "alpha").await.json()["project"], "alpha");
    app.stop().await;
}

fn keyed(request: RequestBuilder, key: &str, body: &Value) -> impl Future<Output = Answer> + use<> {
    Answer::of(request.header("Idempotency-Key", key).json(body))
}

#[sqlx::test]
async fn a_key_makes_a_request_repeatable(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let first = keyed(caller.post("/v1/builds"), "k-1", &minimal()).await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert!(first.headers.get("idempotency-replayed").is_none());

    let again = keyed(caller.post("/v1/builds"), "k-1", &minimal()).await;
    assert_eq!(again.status, StatusCode::OK);
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(again.json(), first.json());

    let mut other = minimal();
    other["dockerfile"] = json!("other");
    keyed(caller.post("/v1/builds"), "k-1", &other)
        .await
        .problem(422, "idempotency_key_reused");

    // The key is the project's own.
    let stranger = app.caller_of("other", Scope::BuildsWrite).await;
    let theirs = keyed(stranger.post("/v1/builds"), "k-1", &other).await;
    assert_eq!(theirs.status, StatusCode::CREATED);

    // An invalid request takes no key.
    keyed(caller.post("/v1/builds"), "k-2", &json!({}))
        .await
        .problem(422, "invalid_request");
    assert_eq!(
        keyed(caller.post("/v1/builds"), "k-2", &other).await.status,
        StatusCode::CREATED
    );

    for bad in ["", "a b", &"x".repeat(256)] {
        keyed(caller.post("/v1/builds"), bad, &minimal())
            .await
            .problem(400, "invalid_header");
    }
    app.stop().await;
}

#[sqlx::test]
async fn two_replicas_that_get_a_key_at_once_make_one_build(pool: PgPool) {
    let replicas = [TestApp::start(&pool).await, TestApp::start(&pool).await];
    let callers = [
        replicas[0].caller(Scope::BuildsWrite).await,
        replicas[1].caller(Scope::BuildsWrite).await,
    ];
    for round in 0..10 {
        let key = format!("race-{round}");
        let requests = (0..8).map(|n| keyed(callers[n % 2].post("/v1/builds"), &key, &minimal()));
        let answers = soon("all answers", futures::future::join_all(requests)).await;
        let mut created = 0;
        let mut ids = std::collections::BTreeSet::new();
        for answer in answers {
            match answer.status {
                StatusCode::CREATED => created += 1,
                StatusCode::OK => assert_eq!(answer.header("idempotency-replayed"), "true"),
                _ => {
                    answer.problem(409, "idempotency_key_in_flight");
                    assert_eq!(answer.header("retry-after"), "1");
                    continue;
                }
            }
            ids.insert(id(&answer.json()).to_owned());
        }
        assert_eq!((created, ids.len()), (1, 1), "round {round}");
        let settled = keyed(callers[1].post("/v1/builds"), &key, &minimal()).await;
        assert_eq!(settled.status, StatusCode::OK);
        assert!(ids.contains(id(&settled.json())));
    }
    let list = Answer::of(callers[0].get("/v1/builds")).await.json();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(10));
    for replica in replicas {
        replica.stop().await;
    }
}
