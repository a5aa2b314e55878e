//! From the JSON of a hook to a [`HookDefinition`]. The requests in it are tried out, so that what is wrong with them
//! shows when the hook is saved and not when somebody pushes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{HookDefinition, Paths, Rules, Supersede, loses_all_names};
use crate::domain::{
    hook::{
        EventKind, Forge,
        glob::Glob,
        template::{self, Variables},
    },
    spec::{
        BuildSpec, Limits,
        reader::{Errors, Field, FieldError, Object, Reported},
        request::BuildRequest,
    },
};

/// Most patterns in a list.
const MAX_PATTERNS: usize = 64;
/// Most skip markers.
const MAX_MARKERS: usize = 16;
/// Most builds of one event.
const MAX_BUILDS: usize = 8;
/// What a message says that isn't to be built, unless the hook names others.
const MARKERS: [&str; 4] = ["[skip ci]", "[ci skip]", "[no ci]", "[skip kiln]"];

/// A request of a hook as it may turn out.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Where errors of it stand.
    pub pointer: String,
    /// What would be built.
    pub spec: BuildSpec,
    /// Whether it lists `registry_credentials`, for the places of errors.
    pub listed: bool,
}

impl HookDefinition {
    /// Its requests with something for every variable. None that can't be read, which a definition's can.
    pub fn tried(&self, limits: &Limits) -> Vec<Tried> {
        let variables = Variables::of_all(self.forge);
        let templates = self.rules.templates().iter().enumerate();
        let tried = templates.filter_map(|(index, template)| {
            let request = template::render(template, &variables);
            Some(Tried {
                pointer: self.rules.place(index),
                spec: BuildRequest::read(&request, limits).ok()?.spec,
                listed: request["registry_credentials"].is_array(),
            })
        });
        tried.collect()
    }

    /// Reads a hook. The error names every invalid field.
    pub fn read(document: &Value, limits: &Limits) -> Result<Self, Vec<FieldError>> {
        let errors = Errors::default();
        let definition = Object::document(document, &errors).and_then(|root| {
            let definition = read(&root, limits, &errors);
            root.finish();
            definition
        });
        errors.finish(definition)
    }
}

fn read(root: &Object<'_>, limits: &Limits, errors: &Errors) -> Result<HookDefinition, Reported> {
    let name = root.field("name").required();
    let forge = root.field("forge").required::<Forge>();
    let events = events(&root.field("events"), forge.as_ref().ok().copied());
    let repositories = patterns(&root.field("repositories"));
    let branches = patterns(&root.field("branches"));
    let tags = patterns(&root.field("tags"));
    let paths = paths(&root.field("paths"));
    let skip_markers = markers(&root.field("skip_markers"));
    let forks = root.field("forks").boolean();
    let supersede = root.field("supersede").one_of(&[
        ("no", Supersede::No),
        ("queued", Supersede::Queued),
        ("running", Supersede::Running),
    ]);
    let build_field = root.field("build");
    let build = match (&forge, &events) {
        (Ok(forge), Ok(events)) => build(&build_field, *forge, events, limits, errors),
        _ => build_field.value().cloned().ok_or_else(|| missing(&build_field)),
    };
    Ok(HookDefinition {
        name: name?,
        forge: forge?,
        rules: Rules {
            events: events?,
            repositories: repositories?,
            branches: branches?,
            tags: tags?,
            paths: paths?,
            skip_markers: skip_markers?,
            forks: forks?.unwrap_or(false),
            supersede: supersede?.unwrap_or_default(),
            build: build?,
        },
    })
}

fn missing(build: &Field<'_>) -> Reported {
    build.report(
        r#"required: expected a request as for `POST /v1/builds` with variables in it, such as `{"images": ["registry.example/team/app:{{short_sha}}"]}`"#,
    )
}

fn events(field: &Field<'_>, forge: Option<Forge>) -> Result<BTreeSet<EventKind>, Reported> {
    let known = forge.map_or(&EventKind::ALL[..], Forge::events);
    let Some(elements) = field.elements()? else {
        let usual = [EventKind::Push, EventKind::Tag, EventKind::Image, EventKind::Manual];
        // What a sender of one's own tells of is what it is meant to tell of.
        return Ok(known
            .iter()
            .copied()
            .filter(|kind| usual.contains(kind) && (forge != Some(Forge::Generic) || *kind != EventKind::Image))
            .collect());
    };
    if elements.is_empty() {
        return Err(field.report("expected at least one kind of event, such as `push`"));
    }
    let mut result = Ok(());
    let mut events = BTreeSet::new();
    for element in elements {
        match element.required::<EventKind>() {
            Ok(kind) if known.contains(&kind) => {
                events.insert(kind);
            }
            Ok(kind) => {
                let known: Vec<_> = known.iter().map(|kind| format!("`{kind}`")).collect();
                result = Err(element.report(format!(
                    "this sender never tells of `{kind}`: expected {}",
                    known.join(", ")
                )));
            }
            Err(reported) => result = Err(reported),
        }
    }
    result.map(|()| events)
}

fn patterns(field: &Field<'_>) -> Result<Vec<Glob>, Reported> {
    let elements = field.elements()?.unwrap_or_default();
    let mut result = Ok(());
    if elements.len() > MAX_PATTERNS {
        result = Err(field.report(format!(
            "expected at most {MAX_PATTERNS} patterns, got {}",
            elements.len()
        )));
    }
    let mut patterns = Vec::new();
    for element in elements {
        match element.required::<Glob>() {
            Ok(pattern) => patterns.push(pattern),
            Err(reported) => result = Err(reported),
        }
    }
    result.map(|()| patterns)
}

fn paths(field: &Field<'_>) -> Result<Paths, Reported> {
    if field.value().is_none() {
        return Ok(Paths::default());
    }
    let paths = field.object()?;
    let include = patterns(&paths.field("include"));
    let exclude = patterns(&paths.field("exclude"));
    paths.finish();
    Ok(Paths {
        include: include?,
        exclude: exclude?,
    })
}

fn markers(field: &Field<'_>) -> Result<Vec<String>, Reported> {
    let Some(elements) = field.elements()? else {
        return Ok(MARKERS.map(str::to_owned).into());
    };
    let mut result = Ok(());
    if elements.len() > MAX_MARKERS {
        result = Err(field.report(format!(
            "expected at most {MAX_MARKERS} markers, got {}",
            elements.len()
        )));
    }
    let mut markers = Vec::new();
    for element in elements {
        match element.required_text() {
            Ok(text) if (1..=64).contains(&text.len()) && !text.chars().any(char::is_control) => {
                markers.push(text.to_owned());
            }
            Ok(_) => result = Err(element.report("expected 1 to 64 bytes on one line, such as `[skip ci]`")),
            Err(reported) => result = Err(reported),
        }
    }
    result.map(|()| markers)
}

fn build(
    field: &Field<'_>,
    forge: Forge,
    events: &BTreeSet<EventKind>,
    limits: &Limits,
    errors: &Errors,
) -> Result<Value, Reported> {
    let value = field.value().ok_or_else(|| missing(field))?;
    let templates: Vec<(String, &Value)> = match value {
        Value::Array(templates) if (1..=MAX_BUILDS).contains(&templates.len()) => templates
            .iter()
            .enumerate()
            .map(|(index, template)| (format!("{}/{index}", field.pointer()), template))
            .collect(),
        Value::Array(templates) => {
            let got = templates.len();
            return Err(field.report(format!("expected 1 to {MAX_BUILDS} requests, got {got}")));
        }
        one => vec![(field.pointer().to_owned(), one)],
    };
    let mut result = Ok(value.clone());
    for (pointer, template) in templates {
        for FieldError { pointer, detail } in problems(template, &pointer, forge, events, limits) {
            result = Err(errors.report(&pointer, detail));
        }
    }
    result
}

/// Everything that is wrong with a request that has variables.
fn problems(
    template: &Value,
    pointer: &str,
    forge: Forge,
    events: &BTreeSet<EventKind>,
    limits: &Limits,
) -> Vec<FieldError> {
    let mut problems = Vec::new();
    if !template.is_object() {
        problems.push(FieldError {
            pointer: pointer.to_owned(),
            detail: "expected an object: a request as for `POST /v1/builds`".to_owned(),
        });
        return problems;
    }
    if !template["project"].is_null() {
        problems.push(FieldError {
            pointer: format!("{pointer}/project"),
            detail: "builds belong to the hook's project: leave this out".to_owned(),
        });
    }
    template::unknown_variables(template, pointer, &mut problems);
    if !problems.is_empty() {
        // What the rest means isn't known.
        return problems;
    }
    let request = template::render(template, &Variables::of_all(forge));
    if let Err(errors) = BuildRequest::read(&request, limits) {
        problems.extend(errors.into_iter().map(
            |FieldError {
                 pointer: within,
                 detail,
             }| FieldError {
                pointer: format!("{pointer}{within}"),
                detail,
            },
        ));
        return problems;
    }
    // Where names are there for some kinds of events only, the others must not find none.
    for kind in events {
        let event = template::sample(*kind);
        let request = template::render(template, &Variables::of(forge, &event));
        if loses_all_names(template, &request) {
            problems.push(FieldError {
                pointer: format!("{pointer}/images"),
                detail: format!(
                    "every name has a variable that an event `{kind}` doesn't have: add one without, such as `…:{{{{ref_slug}}}}`, or take `{kind}` out of `events`"
                ),
            });
        }
        if *kind == EventKind::Image && request["source"]["url"].is_null() && request["source"]["type"] == "git" {
            problems.push(FieldError {
                pointer: format!("{pointer}/source"),
                detail: "required: an image says nothing of the source that is to be built with it; name one, such as `{\"type\": \"git\", \"url\": \"https://git.example/team/app.git\", \"ref\": \"main\"}`".to_owned(),
            });
        }
    }
    problems
}
