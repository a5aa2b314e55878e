//! What a hook does about an event: which it wants, and the requests for builds that it makes of them.

mod read;

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

pub use self::read::Tried;
use super::{
    Event, EventKind, Forge, HookId,
    glob::Glob,
    template::{self, Variables},
};
use crate::domain::spec::{Invalid, text::checked_text};

checked_text! {
    /// What people call a hook.
    HookName, |text| {
        if (1..=100).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
            Ok(())
        } else {
            Err(Invalid::new("expected one line of 1 to 100 characters, such as `app`"))
        }
    }
}

/// Which older builds of the same ref a new one takes the place of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = HookSupersede)]
pub enum Supersede {
    /// None.
    #[default]
    No,
    /// Those that wait in the queue.
    Queued,
    /// Those that wait, and those that have begun.
    Running,
}

/// Patterns of files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = HookPaths)]
pub struct Paths {
    /// A changed file has to match one of these; any does when there are none.
    #[schema(value_type = Vec<String>)]
    pub include: Vec<Glob>,
    /// Changed files that match one of these don't count.
    #[schema(value_type = Vec<String>)]
    pub exclude: Vec<Glob>,
}

/// The rules of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = HookRules)]
pub struct Rules {
    /// The kinds of events that are wanted.
    pub events: BTreeSet<EventKind>,
    /// Patterns of repositories' full names; of images, of their names without tags.
    #[schema(value_type = Vec<String>)]
    pub repositories: Vec<Glob>,
    /// Patterns of branches: of the one that was pushed, or of the one that a pull request wants to be merged into.
    #[schema(value_type = Vec<String>)]
    pub branches: Vec<Glob>,
    /// Patterns of tags: of git, releases and images.
    #[schema(value_type = Vec<String>)]
    pub tags: Vec<Glob>,
    /// Patterns of changed files.
    pub paths: Paths,
    /// What in a commit's message or a pull request's title keeps it from being built, in whatever case.
    pub skip_markers: Vec<String>,
    /// Whether pull requests from other repositories are built.
    pub forks: bool,
    /// Which older builds of the same ref a new one takes the place of.
    pub supersede: Supersede,
    /// The requests for builds, with variables: one, or a list.
    #[schema(value_type = Object)]
    pub build: Value,
}

/// A hook as its owner describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookDefinition {
    /// What it is called.
    pub name: HookName,
    /// Who sends.
    pub forge: Forge,
    /// What is built.
    pub rules: Rules,
}

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Builds, by these requests as `POST /v1/builds` takes them.
    Build(Vec<Value>),
    /// Nothing, for this reason.
    Ignored(String),
}

/// Whether a name matches one of the patterns, or there are none.
fn any(patterns: &[Glob], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name))
}

impl Rules {
    /// The requests with variables.
    pub fn templates(&self) -> &[Value] {
        match &self.build {
            Value::Array(templates) => templates,
            one => std::slice::from_ref(one),
        }
    }

    /// Where errors of a template stand.
    pub fn place(&self, index: usize) -> String {
        match &self.build {
            Value::Array(_) => format!("/build/{index}"),
            _ => "/build".to_owned(),
        }
    }

    /// What becomes of an event.
    pub fn decide(&self, hook: HookId, forge: Forge, event: &Event) -> Decision {
        if let Some(reason) = self.objection(event) {
            return Decision::Ignored(reason);
        }
        let requests = self.requests(hook, forge, event);
        if requests.is_empty() {
            Decision::Ignored("every name in `images` has a variable that this event doesn't have".to_owned())
        } else {
            Decision::Build(requests)
        }
    }

    /// Why an event isn't wanted.
    fn objection(&self, event: &Event) -> Option<String> {
        if !self.events.contains(&event.kind) {
            let wanted: Vec<_> = self.events.iter().map(|kind| format!("`{kind}`")).collect();
            let wanted = wanted.join(", ");
            return Some(format!("the hook wants {wanted}, and this is `{}`", event.kind));
        }
        if !any(&self.repositories, &event.repository) {
            return Some(format!(
                "the repository `{}` matches none of `repositories`",
                event.repository
            ));
        }
        let branch = event.branch.as_deref().or(event.target_branch.as_deref());
        if let Some(branch) = branch.filter(|branch| !any(&self.branches, branch)) {
            return Some(format!("the branch `{branch}` matches none of `branches`"));
        }
        if let Some(tag) = event.tag.as_deref().filter(|tag| !any(&self.tags, tag)) {
            return Some(format!("the tag `{tag}` matches none of `tags`"));
        }
        if event.kind == EventKind::PullRequest && event.from_fork && !self.forks {
            return Some("pull requests from other repositories are built only if `forks` is true".to_owned());
        }
        if let Some(marker) = self.skip_marker(event) {
            return Some(format!("the message says `{marker}`"));
        }
        if !self.touched(event) {
            return Some("no changed file matches `paths`".to_owned());
        }
        None
    }

    /// Tags and releases are made on purpose: what the message of their commit says was meant for its push.
    fn skip_marker(&self, event: &Event) -> Option<&str> {
        if !matches!(event.kind, EventKind::Push | EventKind::PullRequest) {
            return None;
        }
        let message = event.message.as_deref()?.to_lowercase();
        let marker = self
            .skip_markers
            .iter()
            .find(|marker| message.contains(&marker.to_lowercase()));
        marker.map(String::as_str)
    }

    /// Whether a file changed that matters. What isn't known might have: one build too many does less harm than one too
    /// few.
    fn touched(&self, event: &Event) -> bool {
        let Some(files) = &event.files else { return true };
        let counts = |file: &String| !self.paths.exclude.iter().any(|pattern| pattern.matches(file));
        files.iter().any(|file| counts(file) && any(&self.paths.include, file))
    }

    fn requests(&self, hook: HookId, forge: Forge, event: &Event) -> Vec<Value> {
        let variables = Variables::of(forge, event);
        let templates = self.templates().iter().enumerate();
        templates
            .filter_map(|(index, template)| {
                let mut request = template::render(template, &variables);
                if loses_all_names(template, &request) {
                    return None;
                }
                self.group(&mut request, hook, index, event);
                Some(request)
            })
            .collect()
    }

    /// Puts a request into the group of its hook and ref, unless it has one of its own.
    fn group(&self, request: &mut Value, hook: HookId, index: usize, event: &Event) {
        let Some(reference) = event.reference.as_deref().filter(|_| self.supersede != Supersede::No) else {
            return;
        };
        let mut key = format!("hook/{hook}/{index}/{}/{reference}", event.repository);
        // What a key may have; the hash stands for the rest.
        if key.chars().count() > 200 || key.chars().any(char::is_control) || key.trim() != key {
            key = format!("hook/{hook}/{index}/{}", hex::encode(Sha256::digest(key)));
        }
        if let Value::Object(fields) = request {
            fields
                .entry("group")
                .or_insert_with(|| json!({"key": key, "supersede": self.supersede}));
        }
    }
}

/// Whether a request had names for its image and has none left.
fn loses_all_names(template: &Value, request: &Value) -> bool {
    let names = |value: &Value| value["images"].as_array().map_or(0, Vec::len);
    names(template) > 0 && names(request) == 0
}

#[cfg(test)]
mod tests;
