//! What Dockerfiles can say, built through the API by every builder: the resulting images are looked at, not the
//! builders' word. Where a builder doesn't know something, it must say so. `docs/builders.md` shows the outcome.

mod case;
mod cases;

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
};

use futures::{StreamExt, stream};
use serde_json::{Value, json};

use self::{
    case::{Case, Source, Support},
    cases::CASES,
};
use super::support::{Api, Image, Installation, Repository, run, set, text, variable};

/// Builds at a time, on two nodes that share two cores.
const AT_ONCE: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Builder {
    Buildkit,
    Buildah,
}

impl Builder {
    const ALL: [Self; 2] = [Self::Buildkit, Self::Buildah];

    const fn name(self) -> &'static str {
        match self {
            Self::Buildkit => "buildkit",
            Self::Buildah => "buildah",
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_builders_understand_the_same_dockerfiles() {
    let pods = async |kiln: &Installation| check_all(kiln, &Builder::ALL).await;
    run(4, |_| {}, pods).await;

    let table = table();
    // Past the test harness, which keeps what tests print to itself.
    let _ = writeln!(std::io::stderr(), "Conformance by builder:\n{table}");
    let page = include_str!("../../docs/builders.md");
    assert!(
        page.contains(&table),
        "docs/builders.md doesn't hold this table:\n{table}"
    );
}

/// The local runner's builder is the same as in a pod, on a host that has more: what it makes must be the same, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_local_runner_understands_what_buildah_does_in_a_pod() {
    let data = tempfile::tempdir().expect("a folder");
    let local = |config: &mut toml::Table| {
        set(config, "runner", "local");
        set(config, "local.data_dir", utf8(data.path()));
        set(config, "local.agent", utf8(&local_agent()));
        set(config, "engine.max_live_builds", 2);
    };
    let host = async |kiln: &Installation| check_all(kiln, &[Builder::Buildah]).await;
    run(4, local, host).await;
}

/// The agent that was built with the service.
fn local_agent() -> PathBuf {
    let agent = Path::new(env!("CARGO_BIN_EXE_kiln")).with_file_name("kiln-agent");
    assert!(agent.exists(), "first build the agent: cargo build --workspace --bins");
    agent
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Checks every case with these builders, and tells of all that isn't as it should be.
async fn check_all(kiln: &Installation, builders: &[Builder]) {
    let replica = kiln.start().await;
    let api = &replica.api;
    let jobs = CASES
        .iter()
        .flat_map(|case| builders.iter().map(move |&builder| (case, builder)));
    let wrong: Vec<String> = stream::iter(jobs)
        .map(|(case, builder)| async move {
            let outcome = check(kiln, api, case, builder).await;
            outcome
                .err()
                .map(|error| format!("{}, {}: {error}", builder.name(), case.name))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |wrong| wrong)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Builds a case and compares what came of it with what the table says.
async fn check(kiln: &Installation, api: &Api, case: &Case, builder: Builder) -> Result<(), String> {
    let name = |suffix: &str| {
        let case: String = case
            .name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '-'
                }
            })
            .collect();
        kiln.image(&format!("{}/case-{}{suffix}", builder.name(), case.trim_matches('-')))
    };
    let mut request = json!({
        "builder": builder.name(),
        "images": [name("")],
        "timeout_seconds": 600,
    });
    if let Some(dockerfile) = case.base {
        let base = json!({
            "source": {"type": "inline", "files": {"Dockerfile": dockerfile}},
            "builder": builder.name(),
            "images": [name("-base")],
        });
        let build = api.build(&base).await;
        if build["state"] != "succeeded" {
            return Err(format!("the base: {build:#}"));
        }
        request["build_args"] = json!({"BASE": name("-base")});
    }
    let mut repository = None;
    request["source"] = match case.source {
        Source::Files(files) => {
            let files: serde_json::Map<String, Value> = files
                .iter()
                .map(|(path, content)| ((*path).to_owned(), json!(content)))
                .collect();
            json!({"type": "inline", "files": files})
        }
        Source::Links { files, links } => {
            let repository = repository.insert(Repository::public());
            for (path, target) in links {
                repository.link(path, target);
            }
            repository.commit(files);
            json!({"type": "git", "url": repository.url})
        }
    };
    (case.adjust)(&mut request);
    let build = api.build(&request).await;
    let state = text(&build, "/state");
    match case.support(builder) {
        Support::Yes | Support::Note(_) => {
            if state != "succeeded" {
                let log = api.logs(text(&build, "/id")).await;
                return Err(format!("{:#}\n{log}", build["failure"]));
            }
            let image = Image::pull(text(&build, "/images/0"));
            (case.check)(&image, builder)
        }
        Support::Refused { code, words } => {
            let failure = &build["failure"];
            let message = failure["message"].as_str().unwrap_or_default();
            let as_told = failure["code"] == code && words.iter().all(|word| message.contains(word));
            as_told
                .then_some(())
                .ok_or_else(|| format!("{state} with {failure:#} instead of {code}, {words:?}"))
        }
    }
}

/// The table as Markdown.
fn table() -> String {
    let mut table = "| Dockerfile | BuildKit | buildah 1.28 |\n|---|---|---|\n".to_owned();
    for case in CASES {
        let [buildkit, buildah] = Builder::ALL.map(|builder| match case.support(builder) {
            Support::Yes => "yes".to_owned(),
            Support::Note(note) => format!("yes; {note}"),
            Support::Refused { code, .. } => format!("no: `{code}`"),
        });
        // Writing to a String can't fail.
        let _ = writeln!(table, "| {} | {buildkit} | {buildah} |", case.name);
    }
    table
}

/// Checks inside a case: says what is wrong instead of a panic, so that one case doesn't hide the others.
#[expect(clippy::needless_pass_by_value, reason = "callers write what they expect in place")]
fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what} is {found:?} instead of {wanted:?}"))
}

fn expect_file(image: &Image, path: &str, content: &str) -> Result<(), String> {
    expect(path, image.file(path).as_deref(), Some(content))
}

fn expect_absent(image: &Image, paths: &[&str]) -> Result<(), String> {
    let tree = image.tree();
    match paths.iter().find(|path| tree.contains_key(**path)) {
        None => Ok(()),
        Some(path) => Err(format!("{path} is in the image")),
    }
}

/// Mode and owner of a path.
fn expect_entry(image: &Image, path: &str, mode: &str, owner: &str) -> Result<(), String> {
    let tree = image.tree();
    let found = tree.get(path).map(|entry| (entry.mode.as_str(), entry.owner.as_str()));
    expect(path, found, Some((mode, owner)))
}

/// What a link of the image points to.
fn expect_link(image: &Image, path: &str, target: &str) -> Result<(), String> {
    let tree = image.tree();
    let found = tree.get(path).and_then(|entry| entry.target.as_deref());
    expect(path, found, Some(target))
}

/// A field of the configuration that containers start with.
#[expect(clippy::needless_pass_by_value, reason = "callers write what they expect in place")]
fn expect_config(image: &Image, field: &str, value: Value) -> Result<(), String> {
    expect(field, &image.config["config"][field], &value)
}

/// A file of the git server, by HTTP.
fn url_of_a_file() -> String {
    format!("http://{}/v2/", variable("KILN_TEST_REGISTRY"))
}
