//! The folders are the architecture: a module may use only what stands below it (`docs/architecture.md`).

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A module, and the modules it may use.
const ARROWS: [(&str, &[&str]); 8] = [
    ("domain", &[]),
    ("store", &["domain"]),
    ("journal", &["domain", "store"]),
    ("runner", &["domain"]),
    ("engine", &["domain", "store", "journal", "runner"]),
    ("http", &["domain", "store", "journal"]),
    ("client", &["domain"]),
    (
        "app",
        &["domain", "store", "journal", "runner", "engine", "http", "client"],
    ),
];

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

fn all_sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    found
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).expect("below src").to_owned();
            let module = relative
                .iter()
                .next()
                .expect("a name")
                .to_string_lossy()
                .replace(".rs", "");
            let text = fs::read_to_string(&path).expect("a source file");
            (module, relative, text)
        })
        .collect()
}

/// The top-level modules that a file names: `crate::x`, and the members of `crate::{…}`.
fn used(text: &str) -> BTreeSet<String> {
    let identifier = |text: &str| -> String {
        text.chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    };
    let mut used = BTreeSet::new();
    for (start, _) in text.match_indices("crate::") {
        let preceded_by_word = text[..start].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let rest = &text[start + "crate::".len()..];
        if preceded_by_word {
            continue;
        }
        let Some(members) = rest.strip_prefix('{') else {
            used.insert(identifier(rest));
            continue;
        };
        let mut depth = 1;
        let mut at_member = true;
        for (index, c) in members.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => at_member = true,
                c if at_member && !c.is_whitespace() => {
                    used.insert(identifier(&members[index..]));
                    at_member = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    used.remove("");
    used
}

#[test]
fn arrows_go_one_way() {
    let modules: BTreeSet<_> = ARROWS.iter().map(|(module, _)| (*module).to_owned()).collect();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (module, path, text) in all_sources() {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            assert!(
                ["lib", "main"].contains(&module.as_str()),
                "{} belongs to no module",
                path.display()
            );
            continue;
        };
        seen.insert(module.clone());
        for target in used(&text).intersection(&modules) {
            if *target != module && !allowed.contains(&target.as_str()) {
                wrong.push(format!("{} uses {target}", path.display()));
            }
        }
    }
    assert_eq!(seen, modules);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_the_rim_knows_the_outside() {
    let places: [(&str, &[&str]); 4] = [
        ("kube::", &["runner/kubernetes"]),
        ("k8s_openapi::", &["runner/kubernetes"]),
        ("sqlx::query", &["store"]),
        ("axum::", &["http", "app/serve.rs"]),
    ];
    let mut wrong = Vec::new();
    for (_, path, text) in all_sources() {
        for (name, allowed) in places {
            let stated = text
                .lines()
                .any(|line| !line.trim_start().starts_with("//") && line.contains(name));
            if stated && !allowed.iter().any(|place| path.to_string_lossy().starts_with(place)) {
                wrong.push(format!("{} uses {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_reading_of_imports_works() {
    let text = "use crate::{\n    domain::{id::A, spec::{B, C}},\n    store,\n};\nuse crate::http::X; fn f() { crate::engine::run() }";
    let used: Vec<_> = used(text).into_iter().collect();
    assert_eq!(used, ["domain", "engine", "http", "store"]);
}
