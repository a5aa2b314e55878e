//! What builds wait for, as the engine at work tells it.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{git::GitServer, service::Kiln};

fn request(server: &GitServer) -> Value {
    json!({"source": {"type": "git", "url": server.url("app.git")}, "push": false, "builder": "buildah"})
}

async fn queue(kiln: &Kiln, path: &str) -> Value {
    kiln.get(&format!("{path}/queue")).await
}

#[sqlx::test]
async fn places_and_reasons_follow_the_engine(pool: PgPool) {
    let server = GitServer::start("FROM scratch\nCOPY p /p\n").await;
    // Nothing can be fetched until the test says so.
    server.set_open(false);
    let front = Kiln::start_without_worker(&pool).await;
    let first = front.create(&request(&server)).await;
    let seen = queue(&front, &first).await;
    assert_eq!(
        (&seen["state"], &seen["position"]),
        (&json!("queued"), &json!({"project": 1, "all": 1}))
    );
    assert_eq!(seen["blocked_by"]["kind"], "no_worker");
    let words = seen["blocked_by"]["message"].as_str().expect("words");
    assert!(
        words.contains("no worker runs") && words.contains("operator"),
        "{words}"
    );
    assert_eq!(seen["estimate"], Value::Null);

    let kiln = Kiln::start_with(&pool, |config| config.engine.max_live_builds = 1).await;
    kiln.until(&first, |build| build["state"] == "running").await;
    let seen = queue(&kiln, &first).await;
    assert_eq!(
        (&seen["state"], &seen["position"], &seen["blocked_by"]),
        (&json!("running"), &Value::Null, &Value::Null)
    );
    let second = kiln.create(&request(&server)).await;
    let mut urgent = request(&server);
    urgent["priority"] = json!(5);
    let urgent = kiln.create(&urgent).await;
    for (path, place) in [(&second, 2), (&urgent, 1)] {
        let seen = queue(&kiln, path).await;
        assert_eq!(seen["state"], "queued");
        assert_eq!(seen["position"], json!({"project": place, "all": place}));
        assert_eq!(
            seen["blocked_by"],
            json!({"kind": "limit", "message": "a build is running, which is as many as this installation allows"})
        );
    }

    server.set_open(true);
    let urgent = kiln.finished(&urgent).await;
    let second_build = kiln.finished(&second).await;
    assert_eq!(
        (&urgent["state"], &second_build["state"]),
        (&json!("succeeded"), &json!("succeeded"))
    );
    let ended = |build: &Value| build["finished_at"].as_str().expect("a time").to_owned();
    assert!(ended(&urgent) < ended(&second_build), "served by priority");
    assert_eq!(
        queue(&kiln, &second).await,
        json!({"state": "succeeded", "position": null, "blocked_by": null, "estimate": null})
    );
    kiln.stop().await;
    front.stop().await;
}

#[sqlx::test]
async fn a_worker_that_can_launch_nothing_says_why(pool: PgPool) {
    let kiln = Kiln::start_with(&pool, |config| config.local.agent = Some("/nowhere/kiln-agent".into())).await;
    let source = json!({"type": "inline", "files": {"Dockerfile": "FROM scratch\n"}});
    let path = kiln
        .create(&json!({"source": source, "push": false, "builder": "buildah"}))
        .await;
    // Until the worker has registered, there is none.
    let seen = kiln
        .until(&format!("{path}/queue"), |seen| seen["blocked_by"]["kind"] == "cluster")
        .await;
    assert_eq!(
        (&seen["state"], &seen["position"]["all"]),
        (&json!("queued"), &json!(1))
    );
    let words = seen["blocked_by"]["message"].as_str().expect("words");
    assert!(
        words.starts_with("no build can be launched: ") && words.contains("/nowhere/kiln-agent"),
        "{words}"
    );
    kiln.stop().await;
}
