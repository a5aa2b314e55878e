//! The real agent on one side, the real service on the other: what a step prints arrives, and a wish to cancel ends it.

use std::{fs, path::Path, process::Stdio};

use kiln::{
    domain::{attempt_token::Purpose, event::Event, id::AttemptId, project::Scope},
    store::{self, attempt_keys::AttemptKeys},
};
use kiln_agent::wire::plan::{Command as Step, Plan, RunPlan, SourceKind, SourcePlan};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::StatusCode;
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::api::{
    support::{Answer, TestApp, id, soon},
    worker::Hand,
};

/// A folder with what an attempt has in its pod.
struct Pod {
    folder: TempDir,
    url: String,
    attempt: AttemptId,
}

impl Pod {
    async fn new(app: &TestApp, attempt: AttemptId, script: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = AttemptKeys::new([0; 32]);
        let token = key.get(&app.pool).await.expect("a key").token(attempt, Purpose::Log);
        let plan = Plan {
            source: SourcePlan {
                into: folder.path().join("source"),
                from: SourceKind::Inline { files: [].into() },
                subdir: String::new(),
                dockerfile: "Dockerfile".to_owned(),
                template: None,
                mask: Vec::new(),
            },
            build: RunPlan {
                commands: vec![Step {
                    argv: ["sh", "-c", script].map(str::to_owned).into(),
                    progress: None,
                    otherwise: None,
                }],
                grace_seconds: 1,
                ..RunPlan::default()
            },
        };
        fs::write(folder.path().join("token"), token.expose()).expect("written");
        fs::write(
            folder.path().join("plan"),
            serde_json::to_vec(&plan).expect("serialises"),
        )
        .expect("written");
        Self {
            folder,
            url: format!("{}/internal/v1/attempts/{attempt}/log", app.base()),
            attempt,
        }
    }

    fn agent(&self, arguments: &[&str]) -> Child {
        let agent = Path::new(env!("CARGO_BIN_EXE_kiln")).with_file_name("kiln-agent");
        assert!(agent.exists(), "first build the agent: cargo build --workspace --bins");
        Command::new(agent)
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("starts")
    }

    fn ship(&self) -> Child {
        let steps = [
            "--steps",
            "source,build",
            "--gather",
            "5",
            "--heartbeat",
            "50",
            "--retry",
            "100",
        ];
        let mut arguments = vec!["ship", "--spool", "spool", "--url", &self.url, "--token", "token"];
        arguments.extend(steps);
        self.agent(&arguments)
    }

    fn run(&self) -> Child {
        self.agent(&["run", "--plan", "plan", "--report", "report", "--spool", "spool"])
    }

    /// Waits until what is known of the build step's log is as wanted.
    async fn until(&self, pool: &PgPool, wanted: impl Fn(&store::journal::StepCursor) -> bool) {
        soon("the log is as far as that", async {
            loop {
                if let store::journal::Found::Live(live) =
                    store::journal::find(pool, self.attempt).await.expect("reads")
                    && wanted(&live.standing.cursor.step(kiln::domain::event::StepName::Build))
                {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

async fn ended(mut child: Child, what: &str) -> std::process::ExitStatus {
    soon(what, child.wait()).await.expect("waited for")
}

async fn told_to_end(child: Child) -> std::process::ExitStatus {
    let pid = i32::try_from(child.id().expect("runs")).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("sent");
    ended(child, "the shipper ends").await
}

async fn text(pool: &PgPool, attempt: AttemptId) -> String {
    let (mut text, mut after) = (String::new(), 0);
    loop {
        let page = store::journal::read(pool, attempt.build, after).await.expect("reads");
        let Some((last, _)) = page.last() else { return text };
        after = *last;
        for (_, event) in page {
            match event {
                Event::Log(log) => text += &log.text,
                Event::Gap(gap) => panic!("{gap:?}"),
                _ => {}
            }
        }
    }
}

#[sqlx::test]
async fn what_a_step_prints_arrives_whatever_becomes_of_the_shipper(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    app.caller(Scope::BuildsWrite).await.create().await;
    let hand = Hand::claim(&pool, &app.signals).await;
    let script = "seq 1 30000; until test -e go; do sleep 0.01; done; printf '\\377x\\n50%%\\r100%%\\n'; printf end";
    let pod = Pod::new(&app, hand.lease().attempt, script).await;
    let mut shipper = pod.ship();
    let step = pod.run();
    pod.until(&pool, |step| step.line >= 1).await;
    // Out of memory, say.
    shipper.kill().await.expect("killed");
    let shipper = pod.ship();
    pod.until(&pool, |step| step.line == 30_000).await;
    fs::write(pod.folder.path().join("go"), "").expect("written");
    assert!(ended(step, "the step ends").await.success());
    pod.until(&pool, |step| {
        step.sealed.is_some_and(|sealed| sealed.complete && sealed.agrees)
    })
    .await;
    assert!(told_to_end(shipper).await.success());
    let printed = (1..=30_000).fold(String::new(), |text, line| text + &format!("{line}\n"));
    assert!(text(&pool, pod.attempt).await == printed + "\u{fffd}x\n50%\r100%\nend\n");
    app.stop().await;
}

#[sqlx::test]
async fn a_wish_to_cancel_reaches_the_step(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let created = caller.create().await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    let pod = Pod::new(&app, hand.lease().attempt, "echo begun; exec sleep 1000").await;
    let (shipper, step) = (pod.ship(), pod.run());
    pod.until(&pool, |step| step.line >= 1).await;
    let cancelled = Answer::of(caller.post(&format!("/v1/builds/{}/cancel", id(&created)))).await;
    assert_eq!(cancelled.status, StatusCode::ACCEPTED, "{}", cancelled.text);
    assert!(!ended(step, "the step is stopped").await.success());
    pod.until(&pool, |step| {
        step.sealed.is_some_and(|sealed| sealed.complete && sealed.agrees)
    })
    .await;
    assert!(told_to_end(shipper).await.success());
    let text = text(&pool, pod.attempt).await;
    assert!(text.starts_with("begun\n"), "{text}");
    app.stop().await;
}
