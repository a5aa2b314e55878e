//! What would be a pod: a folder, the agent that runs the build in it, and the one that brings its log to the service.

use std::{
    collections::BTreeMap,
    env, fs,
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use kiln::domain::id::AttemptId;
use kiln_agent::wire::plan::{self, Plan, RunPlan, SourceKind, SourcePlan};
use tempfile::TempDir;

use crate::printer::{PRINTING, Printing};

/// Both agents. Dropping it kills them: told to stop, each would look through all processes of the machine for its own,
/// which in a pod are few.
pub(crate) struct Pod {
    ship: Child,
    run: Child,
    _folder: TempDir,
}

impl Pod {
    pub(crate) fn start(
        agent: &str,
        base: &str,
        attempt: AttemptId,
        token: &str,
        printing: &Printing,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        fs::write(path("token"), token)?;
        fs::write(path("plan"), serde_json::to_vec(&plan(folder.path(), printing)?)?)?;
        fs::create_dir(path("spool"))?;
        let start = |command: &mut Command| {
            let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().with_context(|| agent.to_owned())
        };
        let ship = start(
            Command::new(agent)
                .args(["ship", "--steps", "build", "--url"])
                .arg(format!("{base}/internal/v1/attempts/{attempt}/log"))
                .arg("--token")
                .arg(path("token"))
                .arg("--spool")
                .arg(path("spool")),
        )?;
        let run = start(
            Command::new(agent)
                .arg("run")
                .arg("--plan")
                .arg(path("plan"))
                .arg("--report")
                .arg(path("report"))
                .arg("--spool")
                .arg(path("spool")),
        )?;
        Ok(Self {
            ship,
            run,
            _folder: folder,
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for agent in [&mut self.ship, &mut self.run] {
            // It has ended already, or it ends now.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

fn plan(folder: &std::path::Path, printing: &Printing) -> anyhow::Result<Plan> {
    let program = env::current_exe()?.into_os_string().into_string();
    let program = program.ok().context("the path of this program is text")?;
    Ok(Plan {
        source: SourcePlan {
            into: folder.join("source"),
            from: SourceKind::Inline { files: BTreeMap::new() },
            subdir: String::new(),
            dockerfile: "Dockerfile".to_owned(),
            template: None,
            mask: Vec::new(),
        },
        build: RunPlan {
            env: [(PRINTING.to_owned(), serde_json::to_string(printing)?)].into(),
            commands: vec![plan::Command {
                argv: vec![program],
                progress: None,
                otherwise: None,
            }],
            ..RunPlan::default()
        },
    })
}
