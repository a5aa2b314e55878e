//! `kiln dev` as a person meets it: the program, its terminal and its signals.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// Nothing here takes longer, even on a busy machine.
const LIMIT: Duration = Duration::from_mins(4);

/// A running `kiln dev`; killed when dropped.
struct Dev {
    child: Child,
    lines: Receiver<String>,
    /// What it has said so far.
    said: Vec<String>,
}

fn data() -> TempDir {
    let data = tempfile::tempdir().expect("folder");
    fs::set_permissions(data.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    data
}

fn command(data: &Path, listen: &str) -> Command {
    let agent = Path::new(env!("CARGO_BIN_EXE_kiln")).with_file_name("kiln-agent");
    assert!(agent.exists(), "first build the agent: cargo build --workspace --bins");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command
        .args(["--listen", listen, "dev", "--data"])
        .arg(data)
        .env_remove("KILN_CONFIG")
        .stdin(Stdio::null());
    command
}

impl Dev {
    fn start(data: &Path, sample: Option<&Path>) -> Self {
        let mut command = command(data, "127.0.0.1:0");
        if let Some(sample) = sample {
            command.arg("--sample").arg(sample);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
        let stdout: ChildStdout = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        // Ends with the pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            lines,
            said: Vec::new(),
        }
    }

    /// Waits for a line that holds `words`, and returns it.
    fn until(&mut self, words: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.said.push(line.clone());
                    if line.contains(words) {
                        return line;
                    }
                }
                Err(error @ (RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) => {
                    panic!("never said `{words}` ({error}):\n{}", self.said.join("\n"))
                }
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().expect("fits")), signal).expect("signalled");
    }

    /// Tells it to stop, and waits for its end.
    fn stop(mut self, signal: Signal) {
        self.signal(signal);
        self.ends();
    }

    fn ends(&mut self) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("fits"));
        let (ended, end) = channel::<()>();
        let watchdog = std::thread::spawn(move || {
            // Closed without a word once it has ended.
            if end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        let status = self.child.wait().expect("waited for");
        drop(ended);
        watchdog.join().expect("ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes that have to do with the folder.
fn processes(data: &Path) -> BTreeSet<String> {
    let data = data.canonicalize().expect("exists");
    let text = data.to_str().expect("UTF-8");
    let processes = fs::read_dir("/proc").expect("mounted").flatten();
    let lines = processes.filter_map(|entry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        let line = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " ");
        let inside = |link: &str| fs::read_link(entry.path().join(link)).is_ok_and(|path| path.starts_with(&data));
        (line.contains(text) || inside("cwd") || inside("root")).then_some(line)
    });
    lines.collect()
}

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/hello")
}

fn shell(script: &str) -> Output {
    Command::new("sh").args(["-euc", script]).output().expect("runs")
}

#[test]
fn the_sample_is_built_and_the_lines_that_are_printed_work() {
    let data = data();
    let mut dev = Dev::start(data.path(), Some(&sample()));
    dev.until("STEP 1/");
    dev.until("The build succeeded");
    dev.until("Ctrl-C stops it");

    // What a person would paste, as it was printed.
    let pasted: Vec<_> = dev.said.iter().filter(|line| line.starts_with("  ")).cloned().collect();
    let output = shell(&pasted.join("\n"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains("STEP 1/") && text.contains("\"succeeded\"") && !text.contains("problem"),
        "{text}"
    );
    let export = pasted.iter().find(|line| line.contains("export ")).expect("printed");
    let token = |export: &str| export.split_once(" TOKEN=").expect("a token").1.to_owned();
    let kept = token(export);
    let mode = fs::metadata(data.path().join("token"))
        .expect("kept")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    dev.stop(Signal::SIGINT);
    assert_eq!(processes(data.path()), BTreeSet::new());

    let mut again = Dev::start(data.path(), None);
    let export = again.until("export ");
    assert_eq!(token(&export), kept, "the token is kept");
    again.until("Ctrl-C stops it");
    let list = shell(&format!(
        "{export}\ncurl -sS \"$KILN/v1/builds\" -H \"Authorization: Bearer $TOKEN\""
    ));
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(
        list.matches("\"queued\"").count() + list.matches("\"succeeded\"").count() >= 2,
        "builds are kept: {list}"
    );
    again.stop(Signal::SIGTERM);
    assert_eq!(processes(data.path()), BTreeSet::new());
}

#[test]
fn one_that_was_killed_is_followed_by_the_next() {
    let data = data();
    let mut killed = Dev::start(data.path(), None);
    killed.until("Ctrl-C stops it");
    killed.signal(Signal::SIGKILL);
    drop(killed);
    // Its database ends by itself; steps of builds would go on.
    let deadline = Instant::now() + LIMIT;
    while processes(data.path()).iter().any(|line| line.contains("postgres")) {
        assert!(Instant::now() < deadline, "left behind: {:?}", processes(data.path()));
        std::thread::yield_now();
    }

    let mut next = Dev::start(data.path(), Some(&sample()));
    next.until("The build succeeded");
    next.stop(Signal::SIGINT);
    assert_eq!(processes(data.path()), BTreeSet::new());
}

#[test]
fn stopping_it_at_any_time_leaves_no_process_and_loses_no_build() {
    let data = data();
    // Before anything, in mid-initialisation, at the first words, in mid-build; by Ctrl-C, a service manager, and a
    // terminal that is closed.
    for (words, signal) in [
        (None, Signal::SIGINT),
        (Some("Kiln serves on"), Signal::SIGHUP),
        (Some("Build "), Signal::SIGINT),
        (Some("STEP 1/"), Signal::SIGINT),
        (Some("STEP 1/"), Signal::SIGTERM),
    ] {
        let mut dev = Dev::start(data.path(), Some(&sample()));
        if let Some(words) = words {
            dev.until(words);
        } else {
            let deadline = Instant::now() + LIMIT;
            while !data.path().join("postgres").exists() {
                assert!(Instant::now() < deadline, "nothing begins");
                std::thread::yield_now();
            }
        }
        dev.stop(signal);
        assert_eq!(processes(data.path()), BTreeSet::new(), "{words:?}");
    }

    // What was stopped in the middle is built by the next.
    let mut next = Dev::start(data.path(), None);
    let export = next.until("export ");
    next.until("Ctrl-C stops it");
    let ends = shell(&format!(
        "{export}\nAUTH=\"Authorization: Bearer $TOKEN\"
         for id in $(curl -sS \"$KILN/v1/builds\" -H \"$AUTH\" | jq -r '.items[].id'); do
           curl -sS \"$KILN/v1/builds/$id?wait=60\" -H \"$AUTH\" | jq -r .state
         done"
    ));
    let ends = String::from_utf8_lossy(&ends.stdout).into_owned();
    assert!(
        ends.lines().count() >= 2 && ends.lines().all(|state| state == "succeeded"),
        "{ends}"
    );
    next.stop(Signal::SIGINT);
    assert_eq!(processes(data.path()), BTreeSet::new());
}

#[test]
fn a_taken_address_is_named_and_nothing_stays() {
    let data = data();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("address").to_string();
    let output = command(data.path(), &address).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains(&format!("can't listen on {address}")), "{said}");
    assert_eq!(processes(data.path()), BTreeSet::new());
}
