//! The tables in docs/ say what the code does: every code and every metric is in its table, and nothing else is.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;
use kiln::{
    app::cli::Cli,
    client::error::Exit,
    domain::{
        event::{LogStream, StepName, StepPhase},
        failure::FailureCode,
        project::Scope,
        state::StateName,
    },
    engine, http,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use reqwest::StatusCode;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The cells of the table whose header line is this, without the header.
fn table(document: &str, header: &str) -> Vec<Vec<String>> {
    let (_, after) = document
        .split_once(&format!("\n{header}\n"))
        .unwrap_or_else(|| panic!("no table begins with {header}"));
    let rows: Vec<_> = after
        .lines()
        .take_while(|line| line.starts_with('|'))
        .skip(1)
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect();
    assert!(!rows.is_empty(), "the table {header} is empty");
    rows
}

/// A name in code style.
fn name(cell: &str) -> String {
    cell.trim_matches('`').to_owned()
}

fn set<T: Into<String>>(names: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    names.into_iter().map(Into::into).collect()
}

/// Status and code of every `Answer::new(S::STATUS, "code", …)`: the one match that makes problem documents.
fn problems() -> BTreeSet<(String, String)> {
    let source = read("src/http/problem.rs");
    let (_, answers) = source.split_once("\nfn internal()").expect("the answers");
    answers
        .split("Answer::new(")
        .skip(1)
        .map(|answer| {
            let (status, rest) = answer.split_once(',').expect("a status");
            let status = status
                .trim()
                .trim_start_matches("StatusCode::")
                .trim_start_matches("S::");
            let code = rest.split('"').nth(1).expect("a code");
            (status.to_owned(), code.to_owned())
        })
        .collect()
}

#[test]
fn every_problem_has_its_row() {
    let rows = table(&read("docs/api.md"), "| status | `code` | when, and what to do |");
    let documented: BTreeSet<_> = rows
        .iter()
        .map(|row| {
            let status: StatusCode = row[0].parse().expect("a status");
            let constant = status.canonical_reason().expect("a known status");
            (constant.to_uppercase().replace(' ', "_"), name(&row[1]))
        })
        .collect();
    assert_eq!(documented, problems());
    assert_eq!(rows.len(), documented.len(), "a code is there twice");
}

#[test]
fn every_failure_has_its_row() {
    let rows = table(
        &read("docs/api.md"),
        "| `code` | retried | what happened, and what to do |",
    );
    let documented: BTreeSet<_> = rows.iter().map(|row| (name(&row[0]), row[1].clone())).collect();
    let known: BTreeSet<_> = FailureCode::ALL
        .map(|code| {
            let retried = if code.is_infrastructure() { "yes" } else { "no" };
            (code.to_string(), retried.to_owned())
        })
        .into();
    assert_eq!(documented, known);
}

#[test]
fn every_state_and_scope_has_its_row() {
    let api = read("docs/api.md");
    let states = table(&api, "| `state` | means |");
    assert_eq!(
        set(states.iter().map(|row| name(&row[0]))),
        set(StateName::ALL.map(StateName::as_str))
    );
    let scopes = table(&api, "| scope | allows, in the token's own project |");
    assert_eq!(
        set(scopes.iter().map(|row| name(&row[0]))),
        set(Scope::ALL.map(Scope::as_str))
    );
}

/// A schema of the API's description.
fn schema(name: &str) -> Value {
    let document = serde_json::to_value(http::openapi()).expect("serialises");
    document["components"]["schemas"][name].clone()
}

#[test]
fn every_field_of_a_request_has_its_row() {
    let rows = table(&read("docs/api.md"), "| field | what | default | limit |");
    let documented = set(rows.iter().flat_map(|row| row[0].split(", ")).map(name));
    let described = schema("CreateBuild")["properties"]
        .as_object()
        .expect("properties")
        .clone();
    assert_eq!(documented, set(described.keys().cloned()));
}

#[test]
fn every_event_has_its_row_with_all_its_fields() {
    let rows = table(&read("docs/api.md"), "| kind | data, beside `seq` |");
    let mut kinds = BTreeSet::new();
    for row in &rows {
        let kind = name(&row[0]);
        let described = match kind.as_str() {
            "status" => "Status",
            "step" => "Step",
            "log" => "Log",
            "gap" => "Gap",
            "end" => "End",
            other => panic!("{other} is no kind of event"),
        };
        let fields = schema(described)["properties"].as_object().expect("properties").clone();
        for field in fields.keys() {
            let named = [format!("`{field}`"), format!("`\"{field}\":")];
            assert!(
                named.iter().any(|named| row[1].contains(named)),
                "{kind}: {field} isn't named"
            );
        }
        kinds.insert(kind);
    }
    assert_eq!(kinds, set(["status", "step", "log", "gap", "end"]));
    let step = &rows.iter().find(|row| row[0] == "`step`").expect("a row")[1];
    for word in StepName::ALL.map(StepName::as_str) {
        assert!(step.contains(&format!("`{word}`")), "{word}");
    }
    for phase in [StepPhase::Started, StepPhase::Succeeded, StepPhase::Failed] {
        let word = serde_json::to_value(phase).expect("serialises");
        assert!(step.contains(&format!("`{}`", word.as_str().expect("text"))), "{word}");
    }
    let log = &rows.iter().find(|row| row[0] == "`log`").expect("a row")[1];
    for stream in [LogStream::Stdout, LogStream::Stderr] {
        let word = serde_json::to_value(stream).expect("serialises");
        assert!(log.contains(&format!("`{}`", word.as_str().expect("text"))), "{word}");
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What is registered anywhere in the code: the first argument of `register` and `register_with_unit`. Names in the
/// output end in a unit or in `_total`, where they have one.
fn registered() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        for call in [".register(", ".register_with_unit("] {
            names.extend(text.split(call).skip(1).filter_map(|arguments| {
                let name = arguments.trim_start().strip_prefix('"')?;
                Some(name.split('"').next()?.to_owned())
            }));
        }
    }
    names
}

#[test]
fn every_metric_has_its_row() {
    let rows = table(&read("docs/operations.md"), "| metric | labels | counts |");
    let documented = set(rows.iter().map(|row| name(&row[0])));
    let registered = registered();
    let stem = |name: &str| {
        let name = name.strip_suffix("_total").unwrap_or(name);
        let stem = registered.iter().find(|stem| {
            let unit = name.strip_prefix(stem.as_str());
            unit.is_some_and(|unit| unit.is_empty() || unit == "_seconds")
        });
        stem.unwrap_or_else(|| panic!("{name} is documented, but nothing registers it"))
            .clone()
    };
    assert_eq!(set(documented.iter().map(|name| stem(name))), registered);

    // The output itself, as far as it shows metrics that have not counted yet.
    let mut registry = Registry::default();
    http::Metrics::register(&mut registry);
    let engine = engine::metrics::Metrics::register(&mut registry);
    let ended = engine::metrics::EndLabels {
        state: "failed",
        code: "timeout",
    };
    engine.builds_finished.get_or_create(&ended).inc();
    engine.attempts_finished.get_or_create(&ended).inc();
    let mut text = String::new();
    encode(&mut text, &registry).expect("encodes");
    let shown = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let shown: Vec<_> = shown
        .map(|line| match line.split_once(' ').expect("name and type") {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        })
        .collect();
    assert!(shown.len() > 5, "{text}");
    for name in shown {
        assert!(documented.contains(&name), "{name} isn't documented");
    }
}

/// Variables with their flags.
fn variables<'a>(arguments: impl Iterator<Item = &'a clap::Arg>) -> BTreeSet<(String, String)> {
    let known = arguments.filter_map(|argument| {
        let variable = argument.get_env()?.to_str().expect("a name");
        let flag = format!("--{}", argument.get_long().expect("a flag"));
        Some((variable.to_owned(), flag))
    });
    known.collect()
}

#[test]
fn every_command_and_variable_has_its_row() {
    let (operations, client) = (read("docs/operations.md"), read("docs/cli.md"));
    let cli = Cli::command();
    let commands = [&operations, &client].map(|document| table(document, "| command | does |"));
    let documented = set(commands.iter().flatten().map(|row| name(&row[0])));
    let mut known = BTreeSet::new();
    for command in cli.get_subcommands() {
        let mut inner = command.get_subcommands().peekable();
        if inner.peek().is_none() {
            known.insert(format!("kiln {}", command.get_name()));
        }
        known.extend(inner.map(|inner| format!("kiln {} {}", command.get_name(), inner.get_name())));
    }
    assert_eq!(documented, known);

    let documented = |document: &str| -> BTreeSet<_> {
        let rows = table(document, "| variable | flag | key |");
        rows.iter().map(|row| (name(&row[0]), name(&row[1]))).collect()
    };
    assert_eq!(documented(&operations), variables(cli.get_arguments()));
    let build = cli.find_subcommand("build").expect("a command");
    assert_eq!(documented(&client), variables(build.get_arguments()));
}

#[test]
fn every_exit_code_has_its_row() {
    let rows = table(&read("docs/cli.md"), "| code | means |");
    let documented = set(rows.iter().map(|row| row[0].clone()));
    assert_eq!(documented, set(Exit::ALL.map(|exit| (exit as u8).to_string())));
}

/// What a document quotes in these tables stands in the code, so that whoever reads it there finds it here.
#[test]
fn quoted_messages_exist() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let code: String = files
        .iter()
        .map(|file| fs::read_to_string(file).expect("a source file"))
        .collect();
    // Long strings go on behind a backslash on the next line.
    let code: Vec<_> = code.split("\\\n").map(str::trim_start).collect();
    let code = code.concat();
    let operations = read("docs/operations.md");
    let mut quoted = 0;
    for header in ["| reason | what to do |", "| symptom | what to do |"] {
        for row in table(&operations, header) {
            for words in row[0].split('"').skip(1).step_by(2) {
                assert!(code.contains(words), "nothing says \"{words}\"");
                quoted += 1;
            }
        }
    }
    assert!(quoted > 15, "only {quoted} messages are quoted");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = vec![root().join("README.md")];
    for entry in fs::read_dir(root().join("docs")).expect("a folder") {
        documents.push(entry.expect("an entry").path());
    }
    for document in documents {
        let text = fs::read_to_string(&document).unwrap_or_else(|error| panic!("{}: {error}", document.display()));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            if path.starts_with("http") {
                continue;
            }
            let target = match path {
                "" => document.clone(),
                path => document.parent().expect("a folder").join(path),
            };
            assert!(target.exists(), "{}: {link}", document.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).expect("a document");
                let anchors = text.lines().filter(|line| line.starts_with('#')).map(|line| {
                    let words = line.trim_start_matches('#').trim().to_lowercase();
                    let kept = words
                        .chars()
                        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
                    kept.collect::<String>().replace(' ', "-")
                });
                assert!(set(anchors).contains(anchor), "{}: {link}", document.display());
            }
        }
    }
}
