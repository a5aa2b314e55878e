//! The program, with a configuration and a database of the test's, and somebody who calls it.

use std::{
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kiln::domain::project::Scope;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Client, Method, RequestBuilder};
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::{net::TcpListener, time::timeout};
use url::Url;

use super::token::token;

pub(super) const DEADLINE: Duration = Duration::from_mins(2);

/// The program; killed when the test ends before it does.
pub(super) struct Program {
    child: Child,
    address: SocketAddr,
    client: Client,
    token: String,
    folder: TempDir,
}

impl Program {
    /// Starts it with this in its configuration, and waits until it serves.
    pub(super) async fn start(pool: &PgPool, roles: &str, config: &str) -> Self {
        // Fails when another test of this process was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kiln.toml");
        std::fs::write(&path, config).expect("writes");
        let address = free().await;
        let child = Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(["serve", "--roles", roles, "--listen", &address.to_string(), "--config"])
            .arg(&path)
            .env("KILN_DATABASE_URL", database(pool))
            .stderr(File::create(folder.path().join("log")).expect("a file"))
            .stdout(Stdio::null())
            .spawn()
            .expect("starts");
        let program = Self {
            child,
            address,
            client: Client::builder().no_proxy().build().expect("a client"),
            token: token(pool, "default", Scope::BuildsWrite, None).await,
            folder,
        };
        let answered = async {
            while program.request(Method::GET, "/healthz").send().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(DEADLINE, answered).await.expect("it serves");
        program
    }

    /// A request of somebody who may build.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://{}{path}", self.address);
        self.client.request(method, url).bearer_auth(&self.token)
    }

    /// A folder that goes with it.
    pub(super) fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// SIGTERM. Returns what it has written to standard error.
    pub(super) async fn end(mut self) -> String {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("lives");
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().expect("its status") {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let status = timeout(DEADLINE, ended).await.expect("it ends");
        let log = std::fs::read_to_string(self.log()).expect("its log");
        assert!(status.success(), "{status}\n{log}");
        log
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that was free a moment ago.
async fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

/// The URL of the test's database.
fn database(pool: &PgPool) -> String {
    let mut url: Url = std::env::var("DATABASE_URL").expect("set").parse().expect("a URL");
    url.set_path(pool.connect_options().get_database().expect("a name"));
    url.into()
}
