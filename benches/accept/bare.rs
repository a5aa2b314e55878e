//! What HTTP and JSON alone cost: an axum handler that reads a build request and answers as many bytes as Kiln does.
//! It runs as a process of its own, as Kiln does.

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde_json::{Value, json};

/// Set in the process that serves: the size of its answers in bytes.
pub(crate) const SIZE: &str = "KILN_BENCH_BARE_ANSWER_BYTES";

/// Serves until it is killed; prints its address first.
pub(crate) fn serve(answer_bytes: usize) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let padding = "x".repeat(answer_bytes.saturating_sub(r#"{"spec":""}"#.len()));
        let handler = async |State(padding): State<String>, Json(request): Json<Value>| {
            std::hint::black_box(request);
            (StatusCode::CREATED, Json(json!({"spec": padding})))
        };
        let router = Router::new().route("/v1/builds", post(handler)).with_state(padding);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        Ok(axum::serve(listener, router).await?)
    })
}

/// The running process; dropping it kills it.
pub(crate) struct Bare {
    process: Child,
    pub(crate) base: String,
}

impl Bare {
    pub(crate) async fn start(answer_bytes: usize) -> anyhow::Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .env(SIZE, answer_bytes.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process.stdout.take().context("it has an output")?;
        let mut address = String::new();
        tokio::task::spawn_blocking(move || {
            BufReader::new(output).read_line(&mut address)?;
            anyhow::Ok(address)
        })
        .await?
        .map(|address| Self {
            process,
            base: format!("http://{}", address.trim()),
        })
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It has ended already, or it ends now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
