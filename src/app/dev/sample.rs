//! Builds a folder through the public API, as any caller would, with its log on the terminal.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use futures::StreamExt as _;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

/// A folder of text files, to be sent with the request.
pub(super) struct Sample {
    /// Where it was read from.
    pub(super) folder: PathBuf,
    files: BTreeMap<String, String>,
}

impl Sample {
    /// Reads the folder with all that is in it.
    pub(super) fn read(folder: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        collect(folder, "", &mut files)?;
        Ok(Self {
            folder: folder.to_owned(),
            files,
        })
    }

    /// The request: without a push, so that no registry is needed.
    pub(super) fn request(&self) -> Value {
        json!({"source": {"type": "inline", "files": self.files}, "push": false})
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{path}/"), files)?;
        } else {
            files.insert(path, fs::read_to_string(entry.path())?);
        }
    }
    Ok(())
}

/// Why a sample was not built.
#[derive(Debug, thiserror::Error)]
pub(super) enum SampleError {
    /// The API can't be reached, or broke off.
    #[error("the API can't be reached: {0}")]
    Http(#[from] reqwest::Error),
    /// The API refused.
    #[error("the API answers {0}")]
    Refused(String),
    /// The terminal doesn't take the log.
    #[error("can't print the log: {0}")]
    Output(#[from] io::Error),
}

/// Calls the API.
pub(super) struct Caller {
    /// What paths are appended to.
    pub(super) base: String,
    /// The bearer token.
    pub(super) token: String,
    pub(super) client: Client,
}

impl Caller {
    /// Asks for the build and returns its id.
    pub(super) async fn create(&self, request: &Value) -> Result<String, SampleError> {
        let build = self
            .call(self.client.post(format!("{}/v1/builds", self.base)).json(request))
            .await?;
        text(&build.json().await?, "id")
    }

    /// Prints the build's log until the build is over.
    pub(super) async fn follow(&self, id: &str) -> Result<(), SampleError> {
        let url = format!("{}/v1/builds/{id}/logs?follow=1", self.base);
        let mut chunks = self.call(self.client.get(url)).await?.bytes_stream();
        let mut terminal = io::stdout();
        while let Some(chunk) = chunks.next().await {
            terminal.write_all(&chunk?)?;
            terminal.flush()?;
        }
        Ok(())
    }

    /// How the build ended, in a line.
    pub(super) async fn verdict(&self, id: &str, since: Instant) -> Result<String, SampleError> {
        let url = format!("{}/v1/builds/{id}?wait=30", self.base);
        let build: Value = self.call(self.client.get(url)).await?.json().await?;
        let state = text(&build, "state")?;
        let detail = match (&build["failure"]["message"], &build["digest"]) {
            (Value::String(message), _) => format!(": {message}"),
            (_, Value::String(digest)) => format!(", {digest}"),
            _ => String::new(),
        };
        Ok(format!("{state} after {:.1} s{detail}", since.elapsed().as_secs_f64()))
    }

    async fn call(&self, request: RequestBuilder) -> Result<Response, SampleError> {
        let response = request.bearer_auth(&self.token).send().await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            let status = response.status();
            Err(SampleError::Refused(format!("{status}: {}", response.text().await?)))
        }
    }
}

fn text(build: &Value, field: &str) -> Result<String, SampleError> {
    let value = build[field].as_str().map(str::to_owned);
    value.ok_or_else(|| SampleError::Refused(format!("without `{field}`: {build}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_sample_needs_no_registry() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/hello");
        let request = Sample::read(&folder).expect("readable").request();
        let files = request["source"]["files"].as_object().expect("an object");
        assert!(
            files.len() > 2 && files.keys().any(|path| path.contains('/')),
            "{files:?}"
        );
        let dockerfile = files["Dockerfile"].as_str().expect("a text");
        assert!(dockerfile.contains("FROM scratch\n"), "{dockerfile}");
        assert_eq!(request["push"], false);
    }
}
