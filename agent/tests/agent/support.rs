//! Runs the agent and reads what it leaves behind.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use kiln_agent::wire::{
    frame::{Frame, Stream},
    plan::{self, Plan, RunPlan, SourceKind, SourcePlan},
    report::{MAX_REPORT, Report},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// Longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until `condition` gives something.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder for one test, in which the agent runs.
pub(crate) struct Bench {
    folder: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts `kiln-agent run` with these commands.
    pub(crate) fn start(&self, build: RunPlan) -> Running {
        self.write_plan(build);
        self.running(self.step("run"))
    }

    /// Runs `kiln-agent run` to its end.
    pub(crate) fn run(&self, build: RunPlan) -> Finished {
        self.start(build).finish()
    }

    /// Runs a shell script as the build's only command.
    pub(crate) fn script(&self, script: &str) -> Finished {
        self.run(scripts(&[script]))
    }

    /// A plan for the folder `source`.
    pub(crate) fn source(&self, from: SourceKind) -> SourcePlan {
        SourcePlan {
            into: self.path("source"),
            from,
            subdir: String::new(),
            dockerfile: "Dockerfile".to_owned(),
            template: None,
            mask: Vec::new(),
        }
    }

    /// Starts `kiln-agent source`.
    pub(crate) fn start_source(&self, source: SourcePlan) -> Running {
        self.write_source(source);
        self.running(self.step("source"))
    }

    /// Writes a plan for this source, for [`Self::step`] to carry out.
    pub(crate) fn write_source(&self, source: SourcePlan) {
        let build = RunPlan::default();
        self.write(&Plan { source, build });
    }

    /// Runs `kiln-agent source` to its end.
    pub(crate) fn fetch(&self, source: SourcePlan) -> Finished {
        self.start_source(source).finish()
    }

    /// Writes a plan with these commands, for [`Self::step`] to carry out.
    pub(crate) fn write_plan(&self, build: RunPlan) {
        let files = BTreeMap::new();
        let source = self.source(SourceKind::Inline { files });
        self.write(&Plan { source, build });
    }

    fn write(&self, plan: &Plan) {
        fs::write(self.path("plan.json"), serde_json::to_vec(plan).unwrap()).unwrap();
    }

    /// The agent about to carry out a step of the plan that was written.
    pub(crate) fn step(&self, verb: &str) -> Command {
        let mut command = self.agent();
        command.arg(verb).arg("--plan").arg(self.path("plan.json"));
        command.arg("--report").arg(self.path("report.json"));
        command
    }

    fn running(&self, mut step: Command) -> Running {
        let mut child = step.spawn().unwrap();
        Running {
            stdout: child.stdout.take().unwrap(),
            child,
            raw: Vec::new(),
            report: self.path("report.json"),
        }
    }

    /// The report that the last step left.
    pub(crate) fn report(&self) -> Report {
        read_report(&self.path("report.json"))
    }

    /// The agent, with nothing in its environment that could lead a test astray.
    pub(crate) fn agent(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-agent"));
        for name in [
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
        ] {
            command.env_remove(name);
        }
        command
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }

    /// Reads a process id that a script wrote into a file, once it is there.
    pub(crate) fn pid(&self, name: &str) -> Pid {
        eventually(name, || {
            let text = fs::read_to_string(self.path(name)).ok()?;
            text.strip_suffix('\n')?.parse().ok().map(Pid::from_raw)
        })
    }
}

/// SHA-256 in hexadecimal digits, by another program than the one that is tested.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, bytes).unwrap();
    let output = Command::new("sha256sum").arg(&path).output().unwrap().stdout;
    String::from_utf8(output).unwrap()[..64].to_owned()
}

/// Commands that are shell scripts: here the shell is just a program to run.
pub(crate) fn scripts(scripts: &[&str]) -> RunPlan {
    RunPlan {
        commands: scripts.iter().map(|script| shell(script)).collect(),
        grace_seconds: 30,
        ..RunPlan::default()
    }
}

/// A command that is a shell script.
pub(crate) fn shell(script: &str) -> plan::Command {
    plan::Command {
        progress: None,
        otherwise: None,
        argv: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
    }
}

/// Whether there is such a process, dead ones that nobody has reaped included.
pub(crate) fn exists(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// An agent at work.
pub(crate) struct Running {
    child: Child,
    stdout: ChildStdout,
    raw: Vec<u8>,
    report: PathBuf,
}

impl Running {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Reads output until it holds `text`.
    pub(crate) fn read_until(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&self.raw).contains(text) {
            let count = self.stdout.read(&mut buffer).unwrap();
            assert!(
                count > 0,
                "output ended without {text:?}: {}",
                String::from_utf8_lossy(&self.raw)
            );
            self.raw.extend_from_slice(&buffer[..count]);
        }
    }

    /// Waits for the end without reading any output, which may therefore be incomplete.
    pub(crate) fn finish_unread(mut self) -> Report {
        eventually("the end of the agent", || self.child.try_wait().unwrap());
        read_report(&self.report)
    }

    /// Reads all output and waits for the end. Whatever the step, what the report says about its log must be true.
    pub(crate) fn finish(mut self) -> Finished {
        self.stdout.read_to_end(&mut self.raw).unwrap();
        let status = self.child.wait().unwrap();
        let finished = Finished {
            succeeded: status.success(),
            report: read_report(&self.report),
            lines: parse(&self.raw),
        };
        assert_eq!(finished.report.lines, finished.lines.len() as u64);
        let bytes: usize = finished
            .lines
            .iter()
            .map(|line| line.text.len() + usize::from(!line.partial))
            .sum();
        assert_eq!(finished.report.bytes, bytes as u64);
        finished
    }
}

/// An agent that has ended.
pub(crate) struct Finished {
    pub(crate) succeeded: bool,
    pub(crate) report: Report,
    pub(crate) lines: Vec<Line>,
}

impl Finished {
    /// The text of one stream, as it was before framing but for a last newline.
    pub(crate) fn text_of(&self, stream: Stream) -> Vec<u8> {
        join(self.lines.iter().filter(|line| line.stream == stream))
    }

    /// All text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&join(self.lines.iter())).into_owned()
    }

    /// The message of the problem that the report holds.
    pub(crate) fn message(&self) -> &str {
        &self.report.problem.as_ref().expect("a problem").message
    }
}

/// A frame of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) stream: Stream,
    pub(crate) partial: bool,
    pub(crate) text: Vec<u8>,
}

/// Parses framed output; the numbers must count from 1.
pub(crate) fn parse(raw: &[u8]) -> Vec<Line> {
    let mut lines = Vec::new();
    for frame in raw.split_inclusive(|&byte| byte == b'\n') {
        let frame = frame.strip_suffix(b"\n").expect("a whole last line");
        let frame = Frame::parse(frame).unwrap_or_else(|| panic!("not a frame: {}", String::from_utf8_lossy(frame)));
        lines.push(Line {
            stream: frame.stream,
            partial: frame.partial,
            text: frame.text.to_vec(),
        });
        assert_eq!(frame.number, lines.len() as u64);
    }
    lines
}

fn join<'a>(lines: impl Iterator<Item = &'a Line>) -> Vec<u8> {
    let mut text = Vec::new();
    for line in lines {
        text.extend_from_slice(&line.text);
        if !line.partial {
            text.push(b'\n');
        }
    }
    text
}

fn read_report(path: &Path) -> Report {
    let json = fs::read(path).unwrap();
    assert!(json.len() <= MAX_REPORT);
    serde_json::from_slice(&json).unwrap()
}
