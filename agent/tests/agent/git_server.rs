//! A git server on the loopback address: `git http-backend` behind just enough of HTTP. Folders of its address space
//! misbehave in ways that real servers do.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

use tempfile::TempDir;

/// A server of bare repositories.
pub(crate) struct GitServer {
    state: Arc<State>,
    address: String,
    work: TempDir,
}

struct State {
    root: TempDir,
    closing: AtomicBool,
    /// Requests to `/flaky/…` that are still to fail.
    failures: AtomicU32,
    requests: Mutex<Vec<String>>,
    /// What `Authorization` headers held.
    logins: Mutex<Vec<String>>,
    /// Where requests to `/moved/…` are sent.
    moved_to: Mutex<String>,
}

/// What `/private/…` wants: user `ann`, password `p:a ss`.
const LOGIN: &str = "Basic YW5uOnA6YSBzcw==";

struct Request {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl GitServer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            root: TempDir::new().unwrap(),
            closing: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            requests: Mutex::default(),
            logins: Mutex::default(),
            moved_to: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.closing.load(Ordering::SeqCst) {
                    break;
                }
                let shared = Arc::clone(&shared);
                // A client that goes away in the middle is no concern of the server's.
                thread::spawn(move || stream.and_then(|stream| serve(&shared, &stream)));
            }
        });
        Self {
            state,
            address,
            work: TempDir::new().unwrap(),
        }
    }

    /// URL of a repository; the path may begin with one of the folders that misbehave.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// Lets the next requests to `/flaky/…` fail with 503.
    pub(crate) fn fail_next(&self, times: u32) {
        self.state.failures.store(times, Ordering::SeqCst);
    }

    /// Paths asked for so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Keeps an object for Git LFS, and returns the pointer that stands for it in a repository.
    pub(crate) fn keep_large(&self, content: &[u8]) -> String {
        let folder = self.state.root.path().join("lfs");
        fs::create_dir_all(&folder).unwrap();
        let oid = crate::support::sha256(content);
        fs::write(folder.join(&oid), content).unwrap();
        format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {}\n",
            content.len()
        )
    }

    /// What was sent to log in with so far.
    pub(crate) fn logins(&self) -> Vec<String> {
        self.state.logins.lock().unwrap().clone()
    }

    /// Sends requests to `/moved/…` on to this URL.
    pub(crate) fn move_to(&self, url: &str) {
        url.clone_into(&mut self.state.moved_to.lock().unwrap());
    }

    /// Makes a repository with one commit on `main` that holds a Dockerfile.
    pub(crate) fn repository(&self, name: &str) -> Repository {
        self.repository_with(name, &[])
    }

    /// The same, with options for `git init`.
    pub(crate) fn repository_with(&self, name: &str, options: &[&str]) -> Repository {
        let repository = Repository {
            bare: self.state.root.path().join(format!("{name}.git")),
            work: self.work.path().join(name),
        };
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        for (folder, bare) in [(&repository.bare, true), (&repository.work, false)] {
            fs::create_dir_all(folder).unwrap();
            let mut args = vec!["init", "-q", "-b", "main"];
            args.extend(bare.then_some("--bare"));
            args.extend(options);
            git(folder, &args);
        }
        repository.git(&["remote", "add", "origin", &path(&repository.bare)]);
        repository.commit("Dockerfile", "FROM scratch\n");
        repository
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts connections.
        let _ = TcpStream::connect(&self.address);
    }
}

/// A repository on the server, with the working copy that it is fed from.
pub(crate) struct Repository {
    pub(crate) bare: PathBuf,
    pub(crate) work: PathBuf,
}

impl Repository {
    /// Runs git in the working copy.
    pub(crate) fn git(&self, args: &[&str]) -> String {
        git(&self.work, args)
    }

    /// Commits a file to the current branch, pushes all, and returns the commit's id.
    pub(crate) fn commit(&self, file: &str, content: &str) -> String {
        fs::create_dir_all(self.work.join(file).parent().unwrap()).unwrap();
        fs::write(self.work.join(file), content).unwrap();
        self.commit_all(&format!("Write {file}"))
    }

    /// Commits whatever is there.
    pub(crate) fn commit_all(&self, subject: &str) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", subject]);
        self.push();
        self.git(&["rev-parse", "HEAD"])
    }

    /// Adds `library` as it is now as a submodule, to be fetched from `url`. Not yet committed.
    pub(crate) fn add_submodule(&self, name: &str, library: &Self, url: &str) {
        let local = library.bare.to_str().unwrap();
        self.git(&["submodule", "--quiet", "add", "--", local, name]);
        self.git(&["config", "-f", ".gitmodules", &format!("submodule.{name}.url"), url]);
    }

    pub(crate) fn push(&self) {
        self.git(&["push", "-q", "--all", "origin"]);
        self.git(&["push", "-q", "--tags", "origin"]);
    }
}

/// Runs git for the test's own purposes, and returns its output.
pub(crate) fn git(folder: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=Test",
            "-c",
            "user.email=test@example.com",
            "-c",
            "protocol.file.allow=always",
        ])
        .args(args)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn serve(state: &State, stream: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let Some(mut request) = read_request(&mut reader)? else {
        return Ok(());
    };
    state.requests.lock().unwrap().push(request.path.clone());
    state
        .logins
        .lock()
        .unwrap()
        .extend(request.headers.get("authorization").cloned());
    let (folder, rest) = request.path.trim_start_matches('/').split_once('/').unwrap_or(("", ""));
    let rest = format!("/{rest}");
    let answer =
        |status: &str, body: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{body}").into_bytes();
    if let Some(response) = lfs(state, &request)? {
        (&mut &*stream).write_all(&response)?;
        return stream.shutdown(Shutdown::Write);
    }
    let response = match folder {
        "private" if request.headers.get("authorization").map(String::as_str) == Some(LOGIN) => {
            request.path = rest;
            backend(state, &request)?
        }
        "moved" => {
            let location = format!("{}{rest}?{}", state.moved_to.lock().unwrap(), request.query);
            answer(&format!("302 Found\r\nLocation: {location}"), "")
        }
        "private" => answer("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"", ""),
        "forbidden" => answer("403 Forbidden", ""),
        "web" => answer("200 OK\r\nContent-Type: text/html", "<!doctype html>\n<h1>Hello</h1>\n"),
        "broken" => answer("502 Bad Gateway", ""),
        "reset" => return stream.shutdown(Shutdown::Both),
        "silent" => {
            // Until the client gives up.
            let mut rest = Vec::new();
            return reader.read_to_end(&mut rest).map(drop);
        }
        "flaky" => {
            let left = &state.failures;
            if left
                .try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_ok()
            {
                answer("503 Service Unavailable", "")
            } else {
                request.path = rest;
                backend(state, &request)?
            }
        }
        // A server that doesn't know protocol version 2 gives out no commit by its id.
        "old" => {
            request.path = rest;
            request.headers.remove("git-protocol");
            backend(state, &request)?
        }
        _ => backend(state, &request)?,
    };
    (&mut &*stream).write_all(&response)?;
    stream.shutdown(Shutdown::Write)
}

/// Git LFS, as far as downloads need it: its batch API, and the objects themselves.
fn lfs(state: &State, request: &Request) -> io::Result<Option<Vec<u8>>> {
    let answer = |status: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/vnd.git-lfs+json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Some([head.as_bytes(), body].concat())
    };
    if let Some(oid) = request.path.strip_prefix("/lfs/") {
        return Ok(match fs::read(state.root.path().join("lfs").join(oid)) {
            Ok(object) => answer("200 OK", &object),
            Err(_) => answer("404 Not Found", b"{\"message\": \"no such object\"}"),
        });
    }
    if !request.path.ends_with("/info/lfs/objects/batch") {
        return Ok(None);
    }
    let asked: serde_json::Value = serde_json::from_slice(&request.body)?;
    let objects: Vec<_> = asked["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let oid = object["oid"].as_str().unwrap();
            let href = format!("http://{}/lfs/{oid}", request.headers["host"]);
            serde_json::json!({"oid": oid, "size": object["size"], "actions": {"download": {"href": href}}})
        })
        .collect();
    let body = serde_json::json!({"transfer": "basic", "objects": objects});
    Ok(answer("200 OK", body.to_string().as_bytes()))
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if headers
        .get("transfer-encoding")
        .is_some_and(|coding| coding == "chunked")
    {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = headers.get("content-length") {
        body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut body)?;
    }
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body,
    }))
}

fn backend(state: &State, request: &Request) -> io::Result<Vec<u8>> {
    let header = |name: &str| request.headers.get(name).cloned().unwrap_or_default();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_PROJECT_ROOT", state.root.path())
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", &request.path)
        .env("QUERY_STRING", &request.query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdin = child.stdin.take().unwrap();
    let body = request.body.clone();
    let feeder = thread::spawn(move || stdin.write_all(&body));
    let output = child.wait_with_output()?;
    // The backend need not read what it has no use for.
    let _ = feeder.join().unwrap();
    let (head, body) = split_head(&output.stdout);
    let status = head
        .lines()
        .find_map(|line| line.strip_prefix("Status: "))
        .unwrap_or("200 OK");
    let mut response = format!("HTTP/1.1 {status}\r\nConnection: close\r\n").into_bytes();
    for line in head.lines().filter(|line| !line.starts_with("Status: ")) {
        response.extend_from_slice(format!("{line}\r\n").as_bytes());
    }
    response.extend_from_slice(b"\r\n");
    response.extend_from_slice(body);
    Ok(response)
}

fn split_head(output: &[u8]) -> (String, &[u8]) {
    let end = output
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a CGI response");
    (String::from_utf8_lossy(&output[..end]).into_owned(), &output[end + 4..])
}
