//! Logs in an S3-compatible store: a real one, which is killed in between.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use reqwest::StatusCode;
use tokio::process::{Child, Command};

use super::support::{DEADLINE, Installation, Transcript, eventually, inline, kiln_lines, run, set, variable};

const BUCKET: &str = "kiln-logs";
const ACCESS: &str = "kiln";
const SECRET: &str = "kiln-secret";

/// An S3 server whose buckets are folders.
struct S3 {
    port: u16,
    root: PathBuf,
    server: Child,
}

impl S3 {
    async fn start(root: &Path) -> Self {
        std::fs::create_dir_all(root.join(BUCKET)).expect("a bucket");
        std::fs::create_dir_all(root.with_file_name("metadata")).expect("a folder");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let mut s3 = Self {
            port,
            root: root.to_owned(),
            server: Self::spawn(root, port),
        };
        s3.wait().await;
        s3
    }

    fn spawn(root: &Path, port: u16) -> Child {
        Command::new(variable("KILN_TEST_S3_SERVER"))
            .args(["--port", &format!("127.0.0.1:{port}"), "--quiet"])
            .args(["--access", ACCESS, "--secret", SECRET])
            // What belongs to objects is kept beside them: not every file system has extended attributes.
            .args(["posix", "--sidecar"])
            .arg(root.with_file_name("metadata"))
            .arg(root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the S3 server starts")
    }

    async fn wait(&mut self) {
        eventually("the S3 server listens", DEADLINE, || {
            let ended = self.server.try_wait().expect("its status");
            assert!(ended.is_none(), "the S3 server ended: {ended:?}");
            let port = self.port;
            async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok() }
        })
        .await;
    }

    async fn kill(&mut self) {
        self.server.kill().await.expect("dies");
    }

    async fn restart(&mut self) {
        self.server = Self::spawn(&self.root, self.port);
        self.wait().await;
    }

    /// The environment of who uses it.
    fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", ACCESS),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// Names of the objects of a build.
    fn objects(&self, build: &str) -> Vec<String> {
        let folder = self.root.join(BUCKET).join("logs");
        let Ok(days) = std::fs::read_dir(folder) else {
            return Vec::new();
        };
        days.flat_map(|day| std::fs::read_dir(day.expect("lists").path()).expect("lists"))
            .map(|object| object.expect("lists").file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains(build))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_move_to_s3_and_readers_do_not_notice() {
    run(
        2,
        |config| {
            set(config, "archive.url", format!("s3://{BUCKET}/logs"));
            set(config, "archive.after_seconds", 5);
        },
        async |kiln: &Installation| {
            let mut s3 = S3::start(&kiln.folder().join("s3")).await;
            let replica = kiln.start_with(s3.environment()).await;
            // Noise, so that the object is sent in several pieces.
            let noisy = "FROM busybox\nRUN for i in $(seq 1000); do echo \"kiln line $i\"; done; \
                         head -c 12000000 /dev/urandom | base64; echo kiln line 1001\n";
            let id = replica.api.create(&inline(noisy)).await;
            let mut live = Transcript::new(&id);
            let end = live.read_to_end(&replica.api).await;
            assert_eq!(end["state"], "succeeded", "{end}");
            let expected: Vec<u32> = (1..=1001).collect();
            assert_eq!(kiln_lines(&live.text()), expected);

            eventually("the log is in the archive", DEADLINE, async || {
                (replica.api.counter("kiln_archive_builds_total").await >= 1.0).then_some(())
            })
            .await;
            assert_eq!(s3.objects(&id), [format!("{id}.1.jsonl.zst")]);
            assert!(replica.api.counter("kiln_archive_bytes_total").await > 9e6);
            assert!(replica.api.logs(&id).await == live.text(), "the text has changed");
            let mut again = Transcript::new(&id);
            again.read_to_end(&replica.api).await;
            assert!(again.text() == live.text(), "the events have changed");

            // Nobody answers: a clear error, and everything else goes on.
            s3.kill().await;
            let fresh = kiln.start_with(s3.environment()).await;
            for api in [&replica.api, &fresh.api] {
                let (status, body) = api.try_logs(&id).await;
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                assert!(body.expect("a problem").contains("archive_unavailable"));
                assert!(api.ready().await.0);
            }
            let second = replica
                .api
                .create(&inline("FROM busybox\nRUN echo kiln line 1\n"))
                .await;
            assert_eq!(replica.api.finished(&second).await["state"], "succeeded");
            assert_eq!(kiln_lines(&replica.api.logs(&second).await), [1]);
            eventually("moving it fails", DEADLINE, async || {
                let failures = replica.api.counter("kiln_archive_failures_total").await
                    + fresh.api.counter("kiln_archive_failures_total").await;
                (failures >= 1.0).then_some(())
            })
            .await;
            assert_eq!(kiln_lines(&replica.api.logs(&second).await), [1]);

            s3.restart().await;
            assert!(fresh.api.logs(&id).await == live.text(), "the text has changed");
            // A failed move is tried again after half a minute.
            eventually("the second log is in the archive", Duration::from_mins(3), async || {
                (s3.objects(&second).len() == 1).then_some(())
            })
            .await;
            assert_eq!(kiln_lines(&fresh.api.logs(&second).await), [1]);
        },
    )
    .await;
}
