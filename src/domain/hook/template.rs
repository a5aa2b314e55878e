//! Requests for builds with variables in them: `registry.example/{{repository_path}}:{{short_sha}}`.
//!
//! What a variable stands for comes from outside, so the result is read like any other request. A field or an element
//! of a list that names a variable which the event doesn't have is left out.

use serde_json::{Map, Value, json};

use super::{Event, EventKind, Forge};
use crate::domain::spec::{CommitId, reader::FieldError};

/// Digits of `{{short_sha}}`.
const SHORT: usize = 8;
/// Longest `{{ref_slug}}`: what a DNS label may have.
const SLUG: usize = 63;

/// Every variable, in the order of the documentation.
pub(super) const NAMES: [&str; 17] = [
    "sha",
    "short_sha",
    "ref",
    "ref_slug",
    "branch",
    "tag",
    "pr",
    "source_branch",
    "target_branch",
    "repository",
    "repository_path",
    "repository_name",
    "clone_url",
    "event",
    "forge",
    "image",
    "digest",
];

/// What the variables stand for in one event.
#[derive(Clone, Debug)]
pub(super) struct Variables(Vec<(&'static str, String)>);

impl Variables {
    /// Those of an event.
    pub(super) fn of(forge: Forge, event: &Event) -> Self {
        let sha = event.commit.as_ref().map(CommitId::as_str);
        let image = event.kind == EventKind::Image;
        let slug_of = match (&event.pull_request, &event.branch, &event.tag) {
            (Some(number), ..) => Some(format!("pr-{number}")),
            (None, Some(name), _) | (None, None, Some(name)) => Some(name.clone()),
            (None, None, None) => event.reference.clone(),
        };
        let path = path(&event.repository);
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let own = |text: &Option<String>| text.clone();
        let values = [
            ("sha", sha.map(str::to_owned)),
            ("short_sha", sha.map(|sha| sha[..SHORT].to_owned())),
            ("ref", own(&event.reference)),
            ("ref_slug", slug_of.as_deref().and_then(slug)),
            ("branch", own(&event.branch)),
            ("tag", own(&event.tag)),
            ("pr", event.pull_request.map(|number| number.to_string())),
            ("source_branch", own(&event.source_branch)),
            ("target_branch", own(&event.target_branch)),
            ("repository", Some(event.repository.clone())),
            ("repository_path", (!path.is_empty()).then_some(path)),
            ("repository_name", (!name.is_empty()).then_some(name)),
            ("clone_url", own(&event.clone_url)),
            ("event", Some(event.kind.to_string())),
            ("forge", Some(forge.to_string())),
            ("image", image.then(|| event.repository.clone())),
            ("digest", own(&event.digest)),
        ];
        let known = values
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
        Self(known.collect())
    }

    /// Something for each, whatever the event: what a template is checked with.
    pub(super) fn of_all(forge: Forge) -> Self {
        let event = sample(EventKind::Push);
        let mut variables = Self::of(forge, &event);
        for kind in EventKind::ALL {
            for (name, value) in Self::of(forge, &sample(kind)).0 {
                if !variables.0.iter().any(|(known, _)| *known == name) {
                    variables.0.push((name, value));
                }
            }
        }
        variables
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// An event as one of its kind may look.
pub(super) fn sample(kind: EventKind) -> Event {
    let mut event = Event::new(kind, "team/app".to_owned());
    let text = |text: &str| Some(text.to_owned());
    let commit = "3f786850e387550fdab836ed7e6dc881de23001b".parse().ok();
    if kind == EventKind::Image {
        "registry.example/team/base".clone_into(&mut event.repository);
        event.tag = text("1");
        event.digest = text("sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b");
        return event;
    }
    event.clone_url = text("https://git.example/team/app.git");
    event.commit = commit;
    match kind {
        EventKind::Push | EventKind::Manual => {
            event.branch = text("main");
            event.reference = text("refs/heads/main");
        }
        EventKind::Tag | EventKind::Release => {
            event.tag = text("v1");
            event.reference = text("refs/tags/v1");
        }
        EventKind::PullRequest => {
            event.pull_request = Some(1);
            event.source_branch = text("feature");
            event.target_branch = text("main");
            event.reference = text("refs/pull/1/head");
        }
        EventKind::Image => {}
    }
    event
}

/// Lower-case letters and digits with dashes between.
fn slug(name: &str) -> Option<String> {
    let name = name.strip_prefix("refs/").unwrap_or(name);
    let plain: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(SLUG)
        .collect();
    let slug = plain.trim_matches('-');
    (!slug.is_empty()).then(|| slug.to_owned())
}

/// A repository's name as the path of an image: lower case, and nothing that image names don't have.
fn path(name: &str) -> String {
    let parts = name.split('/').filter_map(|part| {
        let plain: String = part
            .chars()
            .map(|c| match c.to_ascii_lowercase() {
                c @ ('a'..='z' | '0'..='9' | '.' | '_' | '-') => c,
                _ => '-',
            })
            .collect();
        let part = plain.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned();
        (!part.is_empty()).then_some(part)
    });
    parts.collect::<Vec<_>>().join("/")
}

/// A piece of a text with variables.
enum Piece<'t> {
    Text(&'t str),
    Variable(&'t str),
    /// Begun and not ended.
    Open,
}

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        pieces.push(Piece::Text(before));
        let Some((name, behind)) = after.split_once("}}") else {
            pieces.push(Piece::Open);
            return pieces;
        };
        pieces.push(Piece::Variable(name.trim()));
        rest = behind;
    }
    pieces.push(Piece::Text(rest));
    pieces
}

/// The text with what its variables stand for; `None` when one of them stands for nothing.
fn fill(text: &str, variables: &Variables) -> Option<String> {
    pieces(text)
        .into_iter()
        .map(|piece| match piece {
            Piece::Text(text) => Some(text),
            Piece::Variable(name) => variables.get(name),
            Piece::Open => None,
        })
        .collect()
}

/// Files that come with the request may have templates of their own in them.
const AS_IT_IS: &str = "/source/files";

/// The template with what its variables stand for.
pub(super) fn render(template: &Value, variables: &Variables) -> Value {
    let mut request = at("", template, variables).unwrap_or_default();
    complete(&mut request, variables);
    once_each(&mut request);
    request
}

/// Names that differ may stand for the same.
fn once_each(request: &mut Value) {
    if let Some(images) = request.get_mut("images").and_then(Value::as_array_mut) {
        let mut seen = Vec::new();
        images.retain(|image| {
            let fresh = !seen.contains(image);
            seen.push(image.clone());
            fresh
        });
    }
}

fn at(pointer: &str, template: &Value, variables: &Variables) -> Option<Value> {
    match template {
        Value::String(text) => fill(text, variables).map(Value::String),
        _ if pointer == AS_IT_IS => Some(template.clone()),
        Value::Array(elements) => {
            let elements = elements.iter().filter_map(|element| at("/", element, variables));
            Some(elements.collect())
        }
        Value::Object(fields) => {
            let inside = |name: &str| match pointer {
                "" | "/source" => format!("{pointer}/{name}"),
                _ => "/".to_owned(),
            };
            let fields = fields
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), at(&inside(name), value, variables)?)));
            Some(Value::Object(fields.collect()))
        }
        other => Some(other.clone()),
    }
}

/// Without `type` and `url` the source is the event's own commit, or its ref where the commit isn't known.
fn complete(request: &mut Value, variables: &Variables) {
    let Some(request) = request.as_object_mut() else { return };
    let source = request.entry("source").or_insert_with(|| Value::Object(Map::new()));
    let Some(source) = source.as_object_mut() else { return };
    if source.contains_key("type") || source.contains_key("url") {
        return;
    }
    source.insert("type".to_owned(), json!("git"));
    for (field, variable) in [("url", "clone_url"), ("ref", "ref"), ("commit", "sha")] {
        if let (Some(value), false) = (variables.get(variable), source.contains_key(field)) {
            source.insert(field.to_owned(), json!(value));
        }
    }
}

/// What is wrong with the variables of a template, by place.
pub(super) fn unknown_variables(template: &Value, pointer: &str, errors: &mut Vec<FieldError>) {
    match template {
        Value::String(text) => {
            for piece in pieces(text) {
                let detail = match piece {
                    Piece::Variable(name) if !NAMES.contains(&name) => {
                        let names = NAMES.map(|name| format!("`{name}`")).join(", ");
                        format!("`{{{{{name}}}}}` is no variable: expected one of {names}")
                    }
                    Piece::Open => "`{{` without `}}`: write a variable such as `{{sha}}`".to_owned(),
                    Piece::Text(_) | Piece::Variable(_) => continue,
                };
                errors.push(FieldError {
                    pointer: pointer.to_owned(),
                    detail,
                });
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                unknown_variables(element, &format!("{pointer}/{index}"), errors);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                // Files may have templates of their own.
                if !(name == "files" && pointer.ends_with("/source")) {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    unknown_variables(value, &format!("{pointer}/{name}"), errors);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: EventKind) -> Variables {
        Variables::of(Forge::Github, &sample(kind))
    }

    #[test]
    fn every_variable_has_something_to_stand_for() {
        let all = Variables::of_all(Forge::Github);
        for name in NAMES {
            assert!(all.get(name).is_some(), "{name}");
        }
        assert_eq!(all.0.len(), NAMES.len());
    }

    #[test]
    fn what_names_a_missing_variable_is_left_out() {
        let template = json!({
            "images": ["r.example/{{ repository_path }}:{{short_sha}}", "r.example/app:{{tag}}"],
            "build_args": {"TAG": "{{tag}}", "REF": "on {{branch}}"},
            "timeout_seconds": 5,
        });
        let twice = json!({"images": ["r.example/app:{{branch}}", "r.example/app:{{ref_slug}}"]});
        assert_eq!(
            render(&twice, &of(EventKind::Push))["images"],
            json!(["r.example/app:main"])
        );
        let push = render(&template, &of(EventKind::Push));
        assert_eq!(push["images"], json!(["r.example/team/app:3f786850"]));
        assert_eq!(push["build_args"], json!({"REF": "on main"}));
        assert_eq!(push["timeout_seconds"], 5);
        let tag = render(&template, &of(EventKind::Tag));
        assert_eq!(
            tag["images"],
            json!(["r.example/team/app:3f786850", "r.example/app:v1"])
        );
        assert_eq!(tag["build_args"], json!({"TAG": "v1"}));
    }

    #[test]
    fn the_source_is_the_events_own_unless_it_is_another() {
        let git = json!({
            "type": "git", "url": "https://git.example/team/app.git", "ref": "refs/heads/main",
            "commit": "3f786850e387550fdab836ed7e6dc881de23001b",
        });
        assert_eq!(render(&json!({}), &of(EventKind::Push))["source"], git);
        let private = render(&json!({"source": {"credentials": "forge"}}), &of(EventKind::Push));
        assert_eq!(private["source"]["credentials"], "forge");
        assert_eq!(private["source"]["url"], git["url"]);
        let other = json!({"type": "git", "url": "https://git.example/other.git"});
        assert_eq!(
            render(&json!({"source": other}), &of(EventKind::Image))["source"],
            other
        );
        let inline = json!({"type": "inline", "files": {"Dockerfile": "FROM {{ base }}"}});
        assert_eq!(
            render(&json!({"source": inline}), &of(EventKind::Push))["source"],
            inline
        );
    }

    #[test]
    fn slugs_and_paths_fit_into_names() {
        assert_eq!(slug("Feature/Ä_1"), Some("feature---1".to_owned()));
        assert_eq!(slug("--"), None);
        assert_eq!(slug(&"x".repeat(100)).map(|slug| slug.len()), Some(SLUG));
        assert_eq!(path("Team/My App.git/-"), "team/my-app.git");
        let pull_request = of(EventKind::PullRequest);
        assert_eq!(pull_request.get("ref_slug"), Some("pr-1"));
        // Whoever opens a pull request names its branch: it must not pass for one of the repository's own.
        assert_eq!(pull_request.get("branch"), None);
    }

    #[test]
    fn variables_that_there_are_not_are_told_by_their_place() {
        let template = json!({"images": ["r/{{sha}}", "r/{{shaa}}"], "labels": {"a/b": "{{"}, "source": {"files": {"x": "{{y}}"}}});
        let mut errors = Vec::new();
        unknown_variables(&template, "/build", &mut errors);
        let places: Vec<_> = errors.iter().map(|error| error.pointer.as_str()).collect();
        assert_eq!(places, ["/build/images/1", "/build/labels/a~1b"]);
    }
}
