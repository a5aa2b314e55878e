//! `kiln-agent source` with archives, from a web server that misbehaves when it is told to.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use kiln_agent::{
    archive::Limits,
    wire::{
        plan::SourceKind,
        report::{Exit, ProblemKind},
    },
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::{Bench, Finished, sha256};

const LIMITS: Limits = Limits {
    bytes: 10 << 20,
    unpacked_bytes: 20 << 20,
    entries: 1000,
};

/// A web server with one file.
struct FileServer {
    address: String,
    state: Arc<State>,
}

struct State {
    file: Vec<u8>,
    requests: Mutex<Vec<String>>,
    closing: AtomicBool,
}

impl FileServer {
    fn start(file: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            file,
            requests: Mutex::default(),
            closing: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.closing.load(Ordering::SeqCst) {
                    break;
                }
                let shared = Arc::clone(&shared);
                thread::spawn(move || stream.and_then(|stream| serve(&shared, &stream)));
            }
        });
        Self { address, state }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// What was asked for so far: path and range.
    fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts connections.
        let _ = TcpStream::connect(&self.address);
    }
}

fn serve(state: &State, stream: &TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first
        .split(' ')
        .nth(1)
        .unwrap_or_default()
        .trim_start_matches('/')
        .to_owned();
    let mut header = |wanted: &str| {
        lines
            .by_ref()
            .map_while(Result::ok)
            .take_while(|line| !line.is_empty())
            .fold(None, |found, line| {
                let (name, value) = line.split_once(": ")?;
                if name.eq_ignore_ascii_case(wanted) {
                    Some(value.to_owned())
                } else {
                    found
                }
            })
    };
    let (kind, query) = path.split_once('?').unwrap_or((&path, ""));
    let wanted = if kind == "private" { "authorization" } else { "range" };
    let told = header(wanted).unwrap_or_default();
    let mut requests = state.requests.lock().unwrap();
    requests.push(format!("{kind} {told}").trim().to_owned());
    let earlier = requests.len() - 1;
    drop(requests);
    let whole = &state.file;
    let from: usize = told
        .trim_start_matches("bytes=")
        .trim_end_matches('-')
        .parse()
        .unwrap_or(0);
    let mut out = stream;
    let mut answer = |status: &str, headers: &str, body: &[u8], length: usize| -> io::Result<()> {
        write!(
            out,
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        )?;
        out.write_all(body)
    };
    match kind {
        // Breaks off after a third each time; goes on where it is asked to.
        "breaks" => {
            let part = &whole[from..(from + whole.len() / 3 + 1).min(whole.len())];
            let left = whole.len() - from;
            if from == 0 {
                answer("200 OK", "", part, left)?;
            } else {
                let range = format!("Content-Range: bytes {from}-{}/{}\r\n", whole.len() - 1, whole.len());
                answer("206 Partial Content", &range, part, left)?;
            }
        }
        // Breaks off once and knows no ranges.
        "from-the-start" => {
            let end = if earlier == 0 { whole.len() / 2 } else { whole.len() };
            answer("200 OK", "", &whole[..end], whole.len())?;
        }
        "busy" if earlier < 2 => answer("503 Service Unavailable", "", b"", 0)?,
        "moved" => answer(
            "302 Found",
            &format!("Location: {}\r\n", query.trim_start_matches("to=")),
            b"",
            0,
        )?,
        "circle" => answer("302 Found", "Location: /circle\r\n", b"", 0)?,
        "gone" => answer("404 Not Found", "", b"", 0)?,
        "forbidden" => answer("403 Forbidden", "", b"", 0)?,
        "private" if told != "Bearer t0ken" => answer("404 Not Found", "", b"", 0)?,
        "private" => answer(
            "200 OK",
            &format!("Repr-Digest: {}\r\n", repr_digest(whole)),
            whole,
            whole.len(),
        )?,
        "silent" => return stream.try_clone()?.read_to_end(&mut Vec::new()).map(drop),
        _ => answer("200 OK", "", whole, whole.len())?,
    }
    stream.shutdown(Shutdown::Write)
}

fn repr_digest(file: &[u8]) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let bytes: Vec<u8> = sha256(file)
        .as_bytes()
        .chunks(2)
        .map(|digits| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap())
        .collect();
    format!("sha-256=:{}:", BASE64_STANDARD.encode(bytes))
}

fn packed(folder: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .arg("-C")
        .arg(folder)
        .args(options)
        .args(["-c", "."])
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

/// A source of a few files, one of them large and hard to compress.
fn tree() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::create_dir_all(folder.path().join("app-1.2/src")).unwrap();
    fs::write(folder.path().join("app-1.2/Dockerfile"), "FROM scratch\n").unwrap();
    let noise: Vec<u8> = (0..200_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(folder.path().join("app-1.2/src/noise"), noise).unwrap();
    symlink("src/noise", folder.path().join("app-1.2/link")).unwrap();
    folder
}

fn archive(url: &str, sha256: &str) -> SourceKind {
    SourceKind::Archive {
        url: url.to_owned(),
        sha256: sha256.to_owned(),
        limits: LIMITS,
    }
}

fn fetch(bench: &Bench, from: SourceKind) -> Finished {
    let mut plan = bench.source(from);
    "app-1.2".clone_into(&mut plan.subdir);
    bench.fetch(plan)
}

/// Fetches what can't be had; returns the message.
fn refused(from: SourceKind) -> String {
    let bench = Bench::new();
    let finished = fetch(&bench, from);
    assert!(!finished.succeeded && finished.report.exit == Exit::Code(1));
    assert_eq!(
        finished.report.problem.as_ref().unwrap().kind,
        ProblemKind::Source,
        "{}",
        finished.text()
    );
    assert!(!bench.path("source.archive").exists());
    finished.message().to_owned()
}

#[test]
fn archives_are_unpacked_plain_and_compressed() {
    let tree = tree();
    for options in [&["-z"][..], &[]] {
        let file = packed(tree.path(), options);
        let server = FileServer::start(file.clone());
        for path in ["file.tar", "breaks", "from-the-start", "busy", "moved?to=/file"] {
            server.state.requests.lock().unwrap().clear();
            let bench = Bench::new();
            let finished = fetch(&bench, archive(&server.url(path), &sha256(&file)));
            assert!(finished.succeeded, "{path}: {}", finished.text());
            let source = bench.path("source/app-1.2");
            assert_eq!(
                fs::read(source.join("link")).unwrap(),
                fs::read(tree.path().join("app-1.2/src/noise")).unwrap()
            );
            assert!(!bench.path("source.archive").exists());
            if path == "breaks" {
                let third = file.len() / 3 + 1;
                assert_eq!(
                    server.requests(),
                    [
                        "breaks".to_owned(),
                        format!("breaks bytes={third}-"),
                        format!("breaks bytes={}-", 2 * third)
                    ]
                );
            }
        }
    }
}

#[test]
fn an_upload_is_fetched_with_the_attempts_token() {
    let file = packed(tree().path(), &["-z"]);
    let server = FileServer::start(file);
    let bench = Bench::new();
    fs::write(bench.path("token"), "t0ken").unwrap();
    let upload = |token: &str| SourceKind::Upload {
        url: server.url("private"),
        token: bench.path(token),
        limits: LIMITS,
    };
    let finished = fetch(&bench, upload("token"));
    assert!(finished.succeeded, "{}", finished.text());
    assert_eq!(server.requests(), ["private Bearer t0ken"]);
    assert!(!finished.text().contains("t0ken") && !finished.text().contains(&server.address));
    fs::write(bench.path("other"), "x").unwrap();
    let message = refused(upload("other"));
    assert!(
        message.contains("not there any more: send the archive again"),
        "{message}"
    );
}

#[test]
fn what_cannot_be_had_says_what_to_do() {
    let file = packed(tree().path(), &["-z"]);
    let server = FileServer::start(file.clone());
    let digest = sha256(&file);
    for (path, words) in [
        (
            "gone?token=hunter2",
            "is not there (HTTP 404 Not Found): correct the URL",
        ),
        ("forbidden", "use a signed link, or upload the archive"),
        ("circle", "too many redirects"),
    ] {
        let message = refused(archive(&server.url(path), &digest));
        assert!(message.starts_with("`source.url`: http://127.0.0.1"), "{message}");
        assert!(message.contains(words) && !message.contains("hunter2"), "{message}");
    }
    let message = refused(archive(&server.url("file"), &sha256(b"another")));
    assert!(
        message.contains(&format!("has the SHA-256 {digest} and not")),
        "{message}"
    );
    let mut small = archive(&server.url("file"), &digest);
    if let SourceKind::Archive { limits, .. } = &mut small {
        limits.bytes = 1000;
    }
    let message = refused(small);
    assert!(message.contains("is larger than 1000 bytes"), "{message}");
    let mut small = archive(&server.url("file"), &digest);
    if let SourceKind::Archive { limits, .. } = &mut small {
        limits.unpacked_bytes = 1000;
    }
    let message = refused(small);
    assert!(message.contains("unpacks to more than 1000 bytes"), "{message}");
}

#[test]
fn where_nothing_listens_it_is_tried_again_and_said_what_to_check() {
    let address = {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        taken.local_addr().unwrap()
    };
    let bench = Bench::new();
    let finished = fetch(&bench, archive(&format!("http://{address}/a.tar"), &sha256(b"")));
    let tries = finished.text().matches("trying again in").count();
    assert_eq!(tries, 3, "{}", finished.text());
    let message = finished.message();
    assert!(
        message.starts_with(&format!("`source.url`: http://{address}/a.tar can't be had"))
            && message.contains("Connection refused")
            && message.contains("check host and port"),
        "{message}"
    );
}

#[test]
fn what_is_no_sound_archive_is_refused() {
    let outside = tree();
    symlink("/etc/passwd", outside.path().join("app-1.2/out")).unwrap();
    for (file, words) in [
        (b"<!DOCTYPE html><h1>Log in</h1>".to_vec(), "it is a web page"),
        (b"PK\x03\x04".to_vec(), "it is a zip file"),
        (packed(outside.path(), &[]), "leads out of the archive"),
        (packed(tree().path(), &["-z"])[..5000].to_vec(), "is cut off"),
    ] {
        let server = FileServer::start(file.clone());
        let message = refused(archive(&server.url("file"), &sha256(&file)));
        assert!(
            message.starts_with("`source.url`: the archive ") && message.contains(words),
            "{message}"
        );
    }
}

#[test]
fn a_missing_folder_names_the_dockerfiles_that_are_there() {
    let file = packed(tree().path(), &[]);
    let server = FileServer::start(file.clone());
    let bench = Bench::new();
    let finished = bench.fetch(bench.source(archive(&server.url("file"), &sha256(&file))));
    assert!(
        finished.message().contains("did you mean `app-1.2/Dockerfile`?"),
        "{}",
        finished.message()
    );
}

#[test]
fn a_stop_ends_a_download_that_hangs() {
    let server = FileServer::start(Vec::new());
    let bench = Bench::new();
    let mut running = bench.start_source(bench.source(archive(&server.url("silent"), &sha256(b""))));
    running.read_until("Fetching");
    crate::support::eventually("the request", || (!server.requests().is_empty()).then_some(()));
    running.signal(Signal::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.report.exit, Exit::Stopped);
}
