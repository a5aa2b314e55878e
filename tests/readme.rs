//! The README's walk through the API works as it stands: its blocks are run by a shell against `kiln dev`.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// Nothing here takes longer unless it hangs; a machine that tests much at once is slow.
const DEADLINE: Duration = Duration::from_mins(2);

/// The fenced blocks that a reader is to paste, in order.
fn blocks() -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("the README");
    let blocks = readme.split("```sh\n").skip(1);
    blocks
        .map(|block| block.split("```").next().expect("an end").to_owned())
        .collect()
}

/// `kiln dev` with a data folder of its own.
struct Dev {
    process: Child,
    /// The lines to paste first.
    export: String,
    folder: TempDir,
}

impl Dev {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Root runs Postgres as another user, who has to get there.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let mut process = Command::new(env!("CARGO_BIN_EXE_kiln"))
            .env_remove("KILN_CONFIG")
            .args(["dev", "--listen", "127.0.0.1:0", "--data"])
            .arg(folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let (found, export) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if line.trim_start().starts_with("export KILN") {
                    // Nobody listens any more once the test has failed.
                    let _ = found.send(line.trim().to_owned());
                }
            }
        });
        let next = || export.recv_timeout(DEADLINE).expect("a line to paste");
        let export = format!("{}\n{}", next(), next());
        Self {
            process,
            export,
            folder,
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("a signal");
    }

    /// Ctrl-C.
    fn interrupt(mut self) {
        self.signal(Signal::SIGINT);
        let status = self.process.wait().expect("ends");
        assert!(status.success(), "{status}");
        let builds = fs::read_dir(self.folder.path().join("data/builds")).expect("a folder");
        assert_eq!(builds.count(), 0, "a build's folder is left behind");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Ended already, unless the test failed. Killed outright it would leave its database running.
        if matches!(self.process.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            let _ = self.process.wait();
        }
    }
}

/// Pastes the blocks into one shell, and gives what each printed.
fn paste(export: &str, blocks: &[String]) -> Vec<String> {
    const END: &str = "---- end of the block ----";
    let folder = tempfile::tempdir().expect("a folder");
    let mut script = format!("{export}\n");
    for block in blocks {
        script += block;
        script.extend(["echo '", END, "'\n"]);
    }
    let output = Command::new("timeout")
        .arg(DEADLINE.as_secs().to_string())
        .args(["bash", "-u", "-c", &script])
        .current_dir(folder.path())
        .env("no_proxy", "127.0.0.1")
        .output()
        .expect("bash runs");
    let (printed, complaints) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{}\n{printed}\n{complaints}", output.status);
    // Beside the output of a build, what the client says about it.
    let said = |line: &&str| line.starts_with("kiln: ") || line.starts_with("  ");
    assert_eq!(complaints.lines().find(|line| !said(line)), None, "{printed}");
    let mut parts: Vec<String> = printed.split(&format!("{END}\n")).map(str::to_owned).collect();
    assert_eq!(parts.pop().as_deref(), Some(""));
    parts
}

/// Fields of the server-sent events: id, kind, data.
fn events(stream: &str) -> Vec<(u64, String, Value)> {
    let field = |event: &str, name: &str| {
        let line = event.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim_start_matches(": ").to_owned())
    };
    let events = stream
        .split("\n\n")
        .filter(|event| event.lines().any(|line| line.starts_with("id:")));
    events
        .map(|event| {
            let id = field(event, "id").expect("an id").parse().expect("a number");
            let data = field(event, "data").expect("data");
            (
                id,
                field(event, "event").expect("a kind"),
                serde_json::from_str(&data).expect("JSON"),
            )
        })
        .collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn the_walk_through_works_as_it_stands() {
    let dev = Dev::start();
    let outputs = paste(&dev.export, &blocks());
    let outputs: [String; 12] = outputs.try_into().expect("as many blocks as this test knows");
    let [
        create,
        follow,
        resume,
        log,
        wait,
        mistakes,
        again,
        cancel,
        list,
        folder,
        detached,
        scripts,
    ] = outputs;

    let created = json(&create);
    let id = created["id"].as_str().expect("an id");
    assert_eq!(created["links"]["events"], format!("/v1/builds/{id}/events"));

    let all = events(&follow);
    let ids: Vec<u64> = all.iter().map(|(id, _, _)| *id).collect();
    assert_eq!(ids, (1..=all.len() as u64).collect::<Vec<_>>(), "{follow}");
    let (_, kind, end) = all.last().expect("events");
    assert_eq!(
        (kind.as_str(), &end["state"]),
        ("end", &Value::from("succeeded")),
        "{follow}"
    );
    // Right after the event that was named, and the same from there on.
    assert_eq!(events(&resume), all[2..]);

    let logged = all.iter().filter(|(_, kind, _)| kind == "log");
    let text: String = logged
        .map(|(_, _, data)| data["text"].as_str().expect("text"))
        .collect();
    assert_eq!(log, text);
    assert!(log.contains("hello.txt"), "{log}");

    let ended = json(&wait);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert_eq!((&ended["failure"], &ended["digest"]), (&Value::Null, &Value::Null));

    let refused = json(&mistakes);
    assert_eq!(
        (&refused["status"], &refused["code"]),
        (&Value::from(422), &Value::from("invalid_request"))
    );
    let errors = refused["errors"].as_array().expect("errors");
    let pointers: Vec<_> = errors
        .iter()
        .map(|error| error["pointer"].as_str().expect("text"))
        .collect();
    assert_eq!(pointers, ["/source/url", "/images/0", "/timeout_second"]);

    let repeated: Vec<&str> = again.lines().collect();
    assert_eq!(repeated.len(), 2, "{again}");
    assert_eq!(repeated[0], repeated[1]);
    assert_ne!(repeated[0], id);

    let states: Vec<&str> = cancel.lines().collect();
    assert!(["cancelling", "cancelled"].contains(&states[0]), "{cancel}");
    assert_eq!(states[1..], ["cancelled"]);

    let listed: Vec<Value> = list.lines().map(json).collect();
    assert_eq!(listed.len(), 3, "{list}");
    assert_eq!(listed[0][1], "cancelled");
    assert_eq!(listed[1][0], repeated[0]);
    assert_eq!(listed[2], serde_json::json!([id, "succeeded"]));

    assert!(folder.contains("COPY . /"), "{folder}");
    assert!(
        detached.contains("COPY . /") && detached.contains("\nstate      succeeded\n"),
        "{detached}"
    );
    let lines: Vec<&str> = scripts.lines().collect();
    assert!(
        lines[0].starts_with("BUILD ") && lines[1].contains(" succeeded "),
        "{scripts}"
    );
    assert_eq!(
        (lines[2], lines.last()),
        ("succeeded", Some(&"exit code 1")),
        "{scripts}"
    );

    dev.interrupt();
}
