//! The commands that ask once, and their exit codes.

use kiln::domain::{event::StepName, failure::FailureCode, project::Scope};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{service::TestApp, support::Shell, worker::Hand};

const GIT: &str = "https://git.example/app.git#main:docker";
const NOBODY: &str = "019f0000-0000-7000-8000-000000000000";

/// Asks for a build, and gives its id.
async fn detached(shell: &Shell) -> String {
    let ran = shell
        .run(&["build", GIT, "-t", "registry.example/team/app:1", "--detach"])
        .await
        .expect(0);
    assert_eq!(ran.error, "");
    ran.out.trim().to_owned()
}

#[sqlx::test]
async fn every_flag_arrives_in_the_request(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let arguments = [
        "build",
        GIT,
        "-t",
        "registry.example/team/app:1",
        "--tag",
        "registry.example/team/app:2",
        "--build-arg",
        "A=b=c",
        "--build-arg",
        "HOME",
        "--target",
        "final",
        "--platform",
        "linux/amd64",
        "--label",
        "team=x",
        "-f",
        "app.Dockerfile",
        "--cpu",
        "500m",
        "--memory",
        "1Gi",
        "--disk",
        "2Gi",
        "--timeout",
        "30m",
        "--priority",
        "-3",
        "--group",
        "app/main",
        "--supersede",
        "running",
        "--serialize",
        "--annotation",
        "job=7",
        "--submodules",
        "--project",
        "default",
        "--detach",
        "--json",
    ];
    let build = shell.run(&arguments).await.expect(0).json();
    let spec = &build["spec"];
    assert_eq!(spec["source"]["url"], "https://git.example/app.git");
    assert_eq!(
        (&spec["source"]["ref"], &spec["source"]["subdir"]),
        (&json!("main"), &json!("docker"))
    );
    assert_eq!(spec["source"]["submodules"], true);
    assert_eq!(
        build["images"],
        json!(["registry.example/team/app:1", "registry.example/team/app:2"])
    );
    assert_eq!(spec["build_args"], json!({"A": "b=c", "HOME": shell.folder()}));
    assert_eq!(
        (&spec["target"], &spec["dockerfile"]),
        (&json!("final"), &json!("app.Dockerfile"))
    );
    assert_eq!(spec["labels"], json!({"team": "x"}));
    assert_eq!(
        spec["resources"],
        json!({"cpu": "500m", "memory": "1Gi", "disk": "2Gi"})
    );
    assert_eq!(
        (&spec["timeout_seconds"], &spec["priority"]),
        (&json!(1800), &json!(-3))
    );
    assert_eq!(spec["annotations"], json!({"job": "7"}));
    assert_eq!(
        spec["group"],
        json!({"key": "app/main", "supersede": "running", "serialize": true})
    );
    app.stop().await;
}

#[sqlx::test]
async fn each_mistake_stands_on_a_line_with_its_flag(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let ran = shell
        .run(&[
            "build",
            "ftp://x/y",
            "-t",
            "app:1",
            "--timeout",
            "90d",
            "--label",
            "a b=c",
        ])
        .await
        .expect(2);
    let begins = |ran: &super::support::Ran, start: &str| {
        assert!(
            ran.error.lines().any(|line| line.starts_with(start)),
            "{start:?} isn't in {ran:#?}"
        );
    };
    for start in [
        "  the PATH or URL: expected",
        "  --tag app:1: expected the registry's host",
        "  --label a b: the key: expected",
    ] {
        begins(&ran, start);
    }
    let ran = shell.run(&["build", GIT]).await.expect(2);
    begins(&ran, "  -t, --tag: required: expected at least one name");
    ran.says(&["to build without pushing, give `--no-push`"]);
    // What the installation limits, it says itself, in the same words.
    let limited = [
        "build",
        GIT,
        "--no-push",
        "--timeout",
        "90d",
        "--memory",
        "900Gi",
        "--platform",
        "linux/s390x",
    ];
    let ran = shell.run(&limited).await.expect(2);
    for start in [
        "  --timeout: expected a time from 1 to 86400 seconds",
        "  --memory 900Gi: expected at most",
        "  --platform linux/s390x: ",
    ] {
        begins(&ran, start);
    }
    let ran = shell
        .run(&["build", GIT, "--no-push", "--secret", "npm"])
        .await
        .expect(2);
    begins(
        &ran,
        "  --secret npm: project `default` has no secret `npm`: store it with `kiln secret set npm --project default`",
    );
    let ran = shell
        .run(&["build", GIT, "--no-push", "--project", "typo"])
        .await
        .expect(2);
    begins(&ran, "  --project typo: there is no project `typo` for this token");
    begins(&ran, "  Projects of this token: default");
    let ran = shell.run(&["list", "--project", "typo"]).await.expect(6);
    ran.says(&["There is no such project", "Projects of this token: default"]);
    begins(
        &shell.run(&["list", "--label", "a b"]).await.expect(2),
        "  --label: expected",
    );
    // Found out before anything is sent.
    for arguments in [
        &["build", "--nosuch"][..],
        &["build", ".", "--build-arg", "KILN_IS_NOT_SET"],
        &["build", "nowhere", "--no-push"],
        &["build", ".", "--no-push"],
        &["build", "https://files.example/app.tar.gz", "--no-push"],
        &["build", "https://git.example/app.git", "--sha256", "x", "--no-push"],
        &["build", ".", "--submodules"],
        &["get", "7"],
        &["list", "--since", "7y"],
        &["list", "--state", "gone"],
        &["list", "--since", "yesterday"],
        &[],
    ] {
        shell.run(arguments).await.expect(2);
    }
    app.stop().await;
}

#[sqlx::test]
async fn the_exit_code_tells_how_the_build_ended(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;

    let succeeded = detached(&shell).await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    let digest = hand.succeed().await;
    let ran = shell.run(&["get", "--wait", &succeeded]).await.expect(0);
    assert!(
        ran.out.contains("state      succeeded\n") && ran.out.contains(digest.as_str()),
        "{ran:?}"
    );

    let failed = detached(&shell).await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    hand.fail(FailureCode::BuildFailed).await;
    let ran = shell.run(&["get", "--wait", &failed]).await.expect(1);
    assert!(ran.out.contains("failure    build_failed: it broke\n"), "{ran:?}");
    // Only looking isn't failing.
    shell.run(&["get", &failed]).await.expect(0);
    let ran = shell.run(&["logs", "-f", &failed]).await.expect(1);
    ran.says(&["kiln: failed after", "build_failed: it broke"]);

    let cancelled = detached(&shell).await;
    let ran = shell.run(&["cancel", &cancelled]).await.expect(0);
    assert_eq!(ran.out, format!("{cancelled} cancelled\n"));
    shell.run(&["get", "--wait", &cancelled]).await.expect(3);

    let ran = shell.run(&["cancel", &succeeded, NOBODY, &cancelled]).await.expect(6);
    ran.says(&["can't change any more", "There is no such build"]);
    assert_eq!(ran.out, format!("{cancelled} cancelled\n"));
    for arguments in [
        &["get", NOBODY][..],
        &["logs", NOBODY],
        &["logs", "-f", NOBODY],
        &["retry", NOBODY],
    ] {
        shell.run(arguments).await.expect(6).says(&["There is no such build"]);
    }
    app.stop().await;
}

#[sqlx::test]
async fn builds_are_listed_filtered_and_counted(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let ids = [detached(&shell).await, detached(&shell).await, detached(&shell).await];
    shell.run(&["cancel", &ids[1]]).await.expect(0);

    let ran = shell.run(&["list"]).await.expect(0);
    let lines: Vec<_> = ran.out.lines().collect();
    assert!(lines[0].starts_with("BUILD ") && lines.len() == 4, "{ran:?}");
    for (line, id) in lines[1..].iter().zip(ids.iter().rev()) {
        assert!(line.starts_with(id.as_str()), "{ran:?}");
        assert!(
            line.contains("https://git.example/app.git#main:docker  registry.example/team/app:1"),
            "{line}"
        );
    }
    let of = |ran: &super::support::Ran| -> Vec<String> {
        let items = ran.json()["items"].as_array().expect("items").clone();
        items
            .iter()
            .map(|item| item["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    let filtered = |arguments: &'static [&'static str]| {
        let mut all = vec!["list", "--json"];
        all.extend(arguments);
        let shell = &shell;
        async move { of(&shell.run(&all).await.expect(0)) }
    };
    assert_eq!(filtered(&["--state", "cancelled"]).await, [ids[1].clone()]);
    assert_eq!(filtered(&["--state", "queued,cancelled"]).await.len(), 3);
    assert_eq!(
        filtered(&[
            "--ref",
            "main",
            "--image",
            "registry.example/team/app:1",
            "--since",
            "1h"
        ])
        .await
        .len(),
        3
    );
    assert_eq!(filtered(&["--ref", "other"]).await.len(), 0);
    assert_eq!(filtered(&["--label", "a=b"]).await.len(), 0);
    assert_eq!(filtered(&["-n", "2"]).await, [ids[2].clone(), ids[1].clone()]);
    shell
        .run(&["list", "-n", "2"])
        .await
        .expect(0)
        .says(&["there are more"]);
    app.stop().await;
}

#[sqlx::test]
async fn a_build_is_named_by_how_its_id_begins(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let ids = [detached(&shell).await, detached(&shell).await];
    // Made one after the other, they have as much in common as the time between them leaves.
    let common = ids[0].bytes().zip(ids[1].bytes()).take_while(|(a, b)| a == b).count();
    let unique = &ids[1][..(common + 1).max(8)];
    let ran = shell.run(&["get", unique]).await.expect(0);
    assert!(ran.out.contains(&ids[1]) && !ran.out.contains(&ids[0]), "{ran:?}");
    shell.run(&["logs", &unique.to_uppercase()]).await.expect(0);
    let ran = shell.run(&["cancel", unique]).await.expect(0);
    assert_eq!(ran.out, format!("{} cancelled\n", ids[1]));
    let again = shell.run(&["retry", "-d", unique]).await.expect(0);
    assert_ne!(again.out.trim(), ids[1]);
    if common >= 8 {
        let ran = shell.run(&["get", &ids[1][..8]]).await.expect(2);
        ran.says(&["several builds begin with", &ids[0], &ids[1], "cancelled, "]);
    }
    let ran = shell.run(&["cancel", "00000000", &ids[0]]).await.expect(6);
    ran.says(&["no build's id begins with 00000000; `kiln list`"]);
    assert_eq!(ran.out, format!("{} cancelled\n", ids[0]));
    shell
        .run(&["get", "7"])
        .await
        .expect(2)
        .says(&["its first 8 characters or more"]);
    app.stop().await;
}

#[sqlx::test]
async fn labels_are_searched_with_and_without_their_value(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let build = |label: &'static str| {
        let shell = &shell;
        async move {
            let ran = shell.run(&["build", GIT, "--no-push", "-d", "--label", label]).await;
            ran.expect(0).out.trim().to_owned()
        }
    };
    let (one, two) = (build("team=one").await, build("team=two").await);
    build("other=one").await;
    for (label, expected) in [("team", vec![&two, &one]), ("team=one", vec![&one]), ("te", vec![])] {
        let ran = shell.run(&["list", "--json", "--label", label]).await.expect(0).json();
        let items = ran["items"].as_array().expect("items").clone();
        let ids: Vec<_> = items.iter().map(|item| item["id"].as_str().expect("an id")).collect();
        assert_eq!(ids, expected, "{label}");
    }
    let ran = shell.run(&["list", "--label", "te"]).await.expect(0);
    assert_eq!(ran.error, "kiln: no builds like that\n");
    app.stop().await;
}

#[sqlx::test]
async fn json_is_what_the_service_answers(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let id = detached(&shell).await;
    let caller = app.bearer(shell.token.as_deref().expect("set"));
    for (path, arguments) in [
        (format!("/v1/builds/{id}"), vec!["get", "--json", &id]),
        ("/v1/builds".to_owned(), vec!["list", "--json"]),
    ] {
        let answer = caller
            .get(&path)
            .send()
            .await
            .expect("an answer")
            .text()
            .await
            .expect("text");
        let ran = shell.run(&arguments).await.expect(0);
        assert_eq!(ran.out, format!("{answer}\n"));
    }
    app.stop().await;
}

#[sqlx::test]
async fn logs_are_printed_as_they_were(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let id = detached(&shell).await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    hand.print(StepName::Source, "fetched\n").await;
    hand.print(StepName::Build, "\u{1b}[1mone\u{1b}[0m\ntwo\n").await;
    hand.lose(3).await;
    hand.print(StepName::Build, "10%\r20%").await;
    let all =
        "fetched\n\u{1b}[1mone\u{1b}[0m\ntwo\n[kiln: 3 lines are missing here: the log was rotated away]\n10%\r20%\n";
    let ran = shell.run(&["logs", &id]).await.expect(0);
    assert_eq!((ran.out.as_str(), ran.error.as_str()), (all, ""));
    let ran = shell.run(&["logs", &id, "--step", "source"]).await.expect(0);
    assert_eq!(ran.out, "fetched\n");
    let ran = shell.run(&["logs", &id, "--json"]).await.expect(0);
    let lines: Vec<Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let kinds: Vec<_> = lines
        .iter()
        .map(|line| line["event"].as_str().expect("a kind"))
        .collect();
    assert_eq!(kinds, ["log", "log", "gap", "log"]);
    let from = lines[1]["seq"].to_string();
    let ran = shell.run(&["logs", &id, "--from", &from]).await.expect(0);
    assert!(ran.out.starts_with("[kiln: 3 lines"), "{ran:?}");
    app.stop().await;
}

#[sqlx::test]
async fn a_build_is_retried_as_a_new_one(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let id = detached(&shell).await;
    // Only what is over can be.
    shell.run(&["retry", &id]).await.expect(6);
    shell.run(&["cancel", &id]).await.expect(0);
    let again = shell.run(&["retry", &id, "--detach"]).await.expect(0);
    let again = again.out.trim().to_owned();
    assert_ne!(again, id);
    let ran = shell.run(&["get", &again]).await.expect(0);
    assert!(ran.out.contains(&format!("retry of   {id}\n")), "{ran:?}");
    let ran = shell.run(&["get", &id]).await.expect(0);
    assert!(ran.out.contains(&format!("retried by {again}\n")), "{ran:?}");
    app.stop().await;
}

#[sqlx::test]
async fn tokens_are_made_listed_and_ended_by_the_service(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let mut shell = Shell::of(&app, Scope::ProjectAdmin).await;
    let made = shell
        .run(&["token", "create", "--api", "--name", "ci", "--expires-in-days", "7"])
        .await
        .expect(0);
    let token = made.out.trim().to_owned();
    assert!(token.starts_with("kiln_") && made.error.is_empty(), "{made:?}");
    let ran = shell.run(&["token", "list"]).await.expect(0);
    let line = ran
        .out
        .lines()
        .find(|line| line.contains(" ci "))
        .expect("listed")
        .to_owned();
    assert!(line.contains("builds:write") && !ran.out.contains(&token), "{ran:?}");
    let (id, _) = line.split_once(' ').expect("an id");

    let admin = shell.token.replace(token).expect("set");
    shell.run(&["list"]).await.expect(0);
    shell.run(&["token", "list"]).await.expect(4).says(&["project:admin"]);
    shell.token = Some(admin);
    shell.run(&["token", "delete", id]).await.expect(0);
    shell
        .run(&["token", "delete", id])
        .await
        .expect(6)
        .says(&["There is no such token"]);
    // Which project isn't guessed.
    let wide = Shell::of(&app, Scope::Admin).await;
    super::service::token(&pool, "other", Scope::BuildsRead, None).await;
    wide.run(&["token", "list"])
        .await
        .expect(2)
        .says(&["which project?", "default, other"]);
    wide.run(&["token", "list", "--project", "other"]).await.expect(0);
    app.stop().await;
}
