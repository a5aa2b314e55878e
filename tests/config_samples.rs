//! The sample configuration in deploy/ is whole and true: it names every key there is, and what it says is the default
//! is the default.

use std::{fs, path::Path};

use kiln::app::config::{Config, Overrides};
use toml::{Table, Value};

const SAMPLE: &str = "deploy/kiln.toml";

fn sample() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(SAMPLE);
    fs::read_to_string(path).expect("the sample")
}

/// The sample with its disabled settings enabled: `#key` is a setting, `# Words` are words.
fn everything() -> String {
    sample()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with([' ', '#']) => setting,
            _ => line,
        })
        .fold(String::new(), |text, line| text + line + "\n")
}

fn load(text: &str) -> Config {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kiln.toml");
    fs::write(&file, text).expect("writes");
    let overrides = Overrides {
        config: Some(file),
        ..Overrides::default()
    };
    Config::load(&overrides).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_sample_says_what_holds_without_it() {
    let (sample, default) = (load(&sample()), load(""));
    assert_eq!(format!("{sample:#?}"), format!("{default:#?}"));
    // Its debug form hides what may be secret.
    assert_eq!(toml::to_string(&sample.database), toml::to_string(&default.database));
}

#[test]
fn what_the_sample_leaves_out_can_be_set_as_it_shows() {
    let config = load(&everything());
    assert!(config.external_url.is_some());
    assert_eq!(config.registry.len(), 1);
    assert!(config.kubernetes.pod_template.0.spec.is_some());
}

#[test]
fn what_the_documents_show_can_be_used() {
    let operations = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let operations = fs::read_to_string(operations).expect("the document");
    let blocks: Vec<_> = operations.split("```toml\n").skip(1).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        load(block.split("```").next().expect("an end"));
    }
}

/// The keys of the table at `path`, in the words of the error about one that doesn't exist. `None` where there is no
/// table of known keys.
fn keys(path: &[&str]) -> Option<Vec<String>> {
    const UNKNOWN: &str = "no_such_key";
    let mut document = Value::Table(Table::from_iter([(UNKNOWN.to_owned(), Value::Integer(0))]));
    for name in path.iter().rev() {
        // The only list of tables.
        if *name == "registry" {
            document = Value::Array(vec![document]);
        }
        document = Value::Table(Table::from_iter([((*name).to_owned(), document)]));
    }
    let text = toml::to_string(&document).expect("TOML");
    let error = toml::from_str::<Config>(&text).expect_err("an unknown key").to_string();
    let (_, expected) = error.split_once(&format!("unknown field `{UNKNOWN}`, expected "))?;
    let line = expected.lines().next().unwrap_or_default();
    Some(line.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

fn missing(path: &mut Vec<String>, document: Option<&Value>, found: &mut Vec<String>) -> usize {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    let Some(keys) = keys(&names) else { return 0 };
    let mut count = keys.len();
    for key in keys {
        path.push(key.clone());
        let value = match document {
            Some(Value::Array(elements)) => elements.first().and_then(|element| element.get(&key)),
            other => other.and_then(|value| value.get(&key)),
        };
        if value.is_none() {
            found.push(path.join("."));
        }
        count += missing(path, value, found);
        path.pop();
    }
    count
}

#[test]
fn the_sample_names_every_key() {
    let document: Table = toml::from_str(&everything()).expect("TOML");
    let mut found = Vec::new();
    let known = missing(&mut Vec::new(), Some(&Value::Table(document)), &mut found);
    assert!(found.is_empty(), "{SAMPLE} doesn't name {}", found.join(", "));
    assert!(known > 40, "only {known} keys were found");
}
