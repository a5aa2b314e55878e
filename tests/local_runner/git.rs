//! A git server on the loopback interface: `git http-backend` behind axum, repositories with a small program in them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, Response, StatusCode, Uri},
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpListener, sync::watch, task::JoinHandle};

/// What `RUN ["/p", …]` can do. Static, because the images begin from scratch.
const PROGRAM: &str = r#"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (!strcmp(argv[1], "exit")) return atoi(argv[2]);
    if (!strcmp(argv[1], "lines")) {
        for (int i = 1; i <= atoi(argv[2]); i++) printf("line %d\n", i);
        return 0;
    }
    if (!strcmp(argv[1], "slowly")) {
        for (int i = 1; i <= atoi(argv[2]); i++) {
            printf("line %d\n", i);
            fflush(stdout);
            usleep(1000);
        }
        return 0;
    }
    if (!strcmp(argv[1], "show")) {
        FILE *file = fopen(argv[2], "r");
        if (!file) return 1;
        for (int c; (c = getc(file)) != EOF;) putchar(c);
        return 0;
    }
    if (!strcmp(argv[1], "list")) {
        struct dirent **entries;
        int count = scandir(argv[2], &entries, 0, alphasort);
        for (int i = 0; i < count; i++) printf("entry %s\n", entries[i]->d_name);
        return count < 0;
    }
    if (!strcmp(argv[1], "give-away")) return fchown(open("/given", O_CREAT | O_WRONLY, 0600), 77, 77);
    if (!strcmp(argv[1], "wait")) {
        if (fork() == 0) { setsid(); for (;;) pause(); }
        printf("waiting\n");
        fflush(stdout);
        for (;;) pause();
    }
    return 99;
}
"#;

/// The same, compiled.
pub(crate) static BINARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("folder");
    let (source, binary) = (folder.path().join("p.c"), folder.path().join("p"));
    fs::write(&source, PROGRAM).expect("written");
    run(Command::new("cc")
        .args(["-static", "-w", "-o"])
        .arg(&binary)
        .arg(&source));
    fs::read(binary).expect("compiled")
});

pub(crate) struct GitServer {
    folder: TempDir,
    address: std::net::SocketAddr,
    /// Requests wait until this says so.
    open: watch::Sender<bool>,
    /// How many there were.
    requests: watch::Sender<usize>,
    server: JoinHandle<()>,
}

impl GitServer {
    /// Serves `app.git`, which holds the program `p` and this Dockerfile.
    pub(crate) async fn start(dockerfile: &str) -> Self {
        let server = Self::empty().await;
        server.add("app.git", &[("Dockerfile", dockerfile)], None);
        server
    }

    /// Serves nothing yet.
    pub(crate) async fn empty() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let (open, requests) = (watch::Sender::new(true), watch::Sender::new(0));
        let app =
            Router::new()
                .fallback(backend)
                .with_state((folder.path().to_owned(), open.clone(), requests.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        let server = tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
        Self {
            folder,
            address,
            open,
            requests,
            server,
        }
    }

    /// Adds a repository with the program `p` and these files in one commit, and where it is told so, another one of
    /// the repositories as a submodule in a folder. Returns the commit.
    pub(crate) fn add(&self, name: &str, files: &[(&str, &str)], submodule: Option<(&str, &str)>) -> String {
        let work = self.folder.path().join("work").join(name);
        for (path, content) in files {
            let path = work.join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, content).expect("written");
        }
        fs::write(work.join("p"), &*BINARY).expect("written");
        run(Command::new("chmod").arg("+x").arg(work.join("p")));
        git(&work, &["init", "-q", "-b", "main"]);
        git(&work, &["add", "."]);
        if let Some((path, other)) = submodule {
            let modules = format!("[submodule \"m\"]\n\tpath = {path}\n\turl = ../{other}\n");
            fs::write(work.join(".gitmodules"), modules).expect("written");
            git(&work, &["add", ".gitmodules"]);
            let link = format!("160000,{},{path}", self.commit_of(other));
            git(&work, &["update-index", "--add", "--cacheinfo", &link]);
        }
        let person = ["-c", "user.name=T", "-c", "user.email=t@example.com"];
        git(&work, &[&person[..], &["commit", "-qm", "x"]].concat());
        let (work, bare) = (work.display().to_string(), self.folder.path().join(name));
        git(
            self.folder.path(),
            &["clone", "-q", "--bare", &work, &bare.display().to_string()],
        );
        self.commit_of(name)
    }

    pub(crate) fn url(&self, repository: &str) -> String {
        format!("http://{}/{repository}", self.address)
    }

    pub(crate) fn commit(&self) -> String {
        self.commit_of("app.git")
    }

    fn commit_of(&self, repository: &str) -> String {
        git(&self.folder.path().join(repository), &["rev-parse", "HEAD"])
    }

    /// Waits until somebody has asked for something.
    pub(crate) async fn asked(&self) {
        let mut requests = self.requests.subscribe();
        requests.wait_for(|count| *count > 0).await.expect("the server lives");
    }

    /// Lets requests wait, or go on.
    pub(crate) fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    run(Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null"))
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("starts");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// One request by the Common Gateway Interface.
async fn backend(
    State((root, open, requests)): State<(PathBuf, watch::Sender<bool>, watch::Sender<usize>)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    requests.send_modify(|count| *count += 1);
    open.subscribe().wait_for(|open| *open).await.expect("the server lives");
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
            .to_owned()
    };
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method.as_str())
        .env("PATH_INFO", uri.path())
        .env("QUERY_STRING", uri.query().unwrap_or(""))
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("git http-backend starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(&body).await.expect("taken");
    drop(stdin);
    let output = child.wait_with_output().await.expect("ends").stdout;
    let end = output
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .expect("headers");
    let mut response = Response::builder().status(StatusCode::OK);
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").expect("a header");
        response = match name {
            "Status" => response.status(value.split(' ').next().expect("a number")),
            _ => response.header(name, value),
        };
    }
    response
        .body(Body::from(output[end + 4..].to_vec()))
        .expect("a response")
}
