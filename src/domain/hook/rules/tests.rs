use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::domain::{hook::template::sample, spec::Limits};

fn hook() -> HookId {
    HookId(Uuid::nil())
}

fn definition(fields: &Value) -> Result<HookDefinition, Vec<String>> {
    let mut document = json!({
        "name": "app", "forge": "github", "build": {"images": ["r.example/app:{{ref_slug}}"]},
    });
    let Value::Object(fields) = fields else {
        panic!("an object")
    };
    for (name, value) in fields {
        document[name] = value.clone();
    }
    HookDefinition::read(&document, &Limits::default())
        .map_err(|errors| errors.into_iter().map(|error| error.pointer).collect())
}

#[track_caller]
fn rules(fields: &Value) -> Rules {
    definition(fields).expect("valid").rules
}

#[track_caller]
fn reason(rules: &Rules, event: &Event) -> String {
    match rules.decide(hook(), Forge::Github, event) {
        Decision::Ignored(reason) => reason,
        Decision::Build(requests) => panic!("built: {requests:?}"),
    }
}

#[track_caller]
fn built(rules: &Rules, event: &Event) -> Vec<Value> {
    match rules.decide(hook(), Forge::Github, event) {
        Decision::Build(requests) => requests,
        Decision::Ignored(reason) => panic!("ignored: {reason}"),
    }
}

#[test]
fn a_hook_wants_pushes_and_tags_unless_it_says_otherwise() {
    let usual = rules(&json!({}));
    let kinds = [EventKind::Push, EventKind::Tag, EventKind::Manual];
    assert_eq!(usual.events, kinds.into());
    for kind in kinds {
        assert_eq!(built(&usual, &sample(kind)).len(), 1);
    }
    let pull_request = sample(EventKind::PullRequest);
    assert!(reason(&usual, &pull_request).contains("`pull_request`"));
    let registry = rules(&json!({
        "forge": "registry",
        "build": {"source": {"type": "git", "url": "https://git.example/a.git"}, "images": ["r.example/app:1"]},
    }));
    assert_eq!(registry.events, [EventKind::Manual, EventKind::Image].into());
}

#[test]
fn every_rule_has_its_reason() {
    let hook = rules(&json!({
        "events": ["push", "tag", "pull_request"], "repositories": ["team/*"], "branches": ["main", "release/*"],
        "tags": ["v*"], "paths": {"include": ["src/**"], "exclude": ["**/*.md"]},
    }));
    let change = |kind, change: fn(&mut Event)| {
        let mut event = sample(kind);
        change(&mut event);
        event
    };
    let push = EventKind::Push;
    for (event, expected) in [
        (
            change(push, |event| event.repository = "other/app".to_owned()),
            "`repositories`",
        ),
        (
            change(push, |event| event.branch = Some("feature".to_owned())),
            "`branches`",
        ),
        (
            change(EventKind::Tag, |event| event.tag = Some("1".to_owned())),
            "`tags`",
        ),
        (
            change(push, |event| event.message = Some("Fix\n\n[CI Skip]".to_owned())),
            "[ci skip]",
        ),
        (
            change(push, |event| event.files = Some(vec!["docs/x".to_owned()])),
            "`paths`",
        ),
        (
            change(push, |event| event.files = Some(vec!["src/x.md".to_owned()])),
            "`paths`",
        ),
        (
            change(EventKind::PullRequest, |event| event.from_fork = true),
            "`forks`",
        ),
        (
            change(EventKind::PullRequest, |event| {
                event.target_branch = Some("dev".to_owned());
            }),
            "`branches`",
        ),
    ] {
        let reason = reason(&hook, &event);
        assert!(reason.contains(expected), "{reason}");
    }
    for event in [
        sample(push),
        change(push, |event| {
            event.files = Some(vec!["docs/x".to_owned(), "src/a/b".to_owned()]);
        }),
        // Who tags means it, and doesn't say which files.
        change(EventKind::Tag, |event| event.message = Some("[skip ci]".to_owned())),
        sample(EventKind::PullRequest),
    ] {
        built(&hook, &event);
    }
    let open = rules(&json!({"events": ["pull_request"], "forks": true, "skip_markers": []}));
    built(
        &open,
        &change(EventKind::PullRequest, |event| {
            event.from_fork = true;
            event.message = Some("[skip ci]".to_owned());
        }),
    );
}

#[test]
fn builds_of_a_ref_are_a_group_where_they_supersede() {
    let rules = rules(&json!({
        "supersede": "running",
        "build": [
            {"images": ["r.example/a:1"]},
            {"images": ["r.example/b:1"], "group": {"key": "mine"}},
        ],
    }));
    let requests = built(&rules, &sample(EventKind::Push));
    let group = json!({"key": format!("hook/{}/0/team/app/refs/heads/main", Uuid::nil()), "supersede": "running"});
    assert_eq!(requests[0]["group"], group);
    assert_eq!(requests[1]["group"], json!({"key": "mine"}));
    let mut long = sample(EventKind::Push);
    long.reference = Some("x".repeat(255));
    let key = built(&rules, &long)[0]["group"]["key"].as_str().expect("a key").len();
    assert!(key <= 200, "{key}");
    let without = self::rules(&json!({}));
    assert_eq!(built(&without, &sample(EventKind::Push))[0]["group"], Value::Null);
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let errors = definition(&json!({
        "name": "", "events": ["push", "image", "x"], "branches": [""], "paths": {"includes": []},
        "skip_markers": ["a\nb"], "forks": 1, "supersede": "all", "colour": "red",
    }))
    .expect_err("refused");
    for pointer in [
        "/name",
        "/events/1",
        "/events/2",
        "/branches/0",
        "/paths/includes",
        "/skip_markers/0",
        "/forks",
        "/supersede",
    ] {
        assert!(errors.iter().any(|error| error == pointer), "{pointer} of {errors:?}");
    }
}

#[test]
fn templates_are_tried_out() {
    let errors = |build: Value| definition(&json!({"build": build})).expect_err("refused");
    assert_eq!(errors(json!({"images": ["app:{{shaa}}"]})), ["/build/images/0"]);
    assert_eq!(
        errors(json!({"images": ["app:{{sha}}"], "timeout_seconds": 0, "project": "x"})),
        ["/build/project"]
    );
    assert_eq!(
        errors(json!({"images": ["app:{{sha}}"], "timeout_seconds": 0})),
        ["/build/images/0", "/build/timeout_seconds"]
    );
    assert_eq!(
        errors(json!([{"images": ["r.example/app:1"]}, {"imags": []}])),
        ["/build/1/images", "/build/1/imags"]
    );
    // A push has no tag.
    assert_eq!(
        errors(json!({"images": ["r.example/app:{{tag}}"]})),
        ["/build/images", "/build/images"]
    );
    assert_eq!(errors(json!([])), ["/build"]);
    assert_eq!(errors(json!(1)), ["/build"]);
    let registry = definition(&json!({"forge": "registry"})).expect_err("refused");
    assert_eq!(registry, ["/build/source"]);
    let both =
        json!({"build": {"images": ["r.example/app:{{tag}}", "r.example/app:{{branch}}"]}, "events": ["push", "tag"]});
    assert!(definition(&both).is_ok());
}

#[test]
fn rules_read_back() {
    let rules =
        rules(&json!({"events": ["push"], "branches": ["a*"], "paths": {"exclude": ["x"]}, "supersede": "queued"}));
    let stored = serde_json::to_value(&rules).expect("serialises");
    assert_eq!(serde_json::from_value::<Rules>(stored).expect("reads"), rules);
}

proptest! {
    /// Whatever a branch is called, what is made of it is a request or is refused like one, and has no name of another.
    #[test]
    fn names_from_outside_stay_where_they_are_put(branch in "\\PC{1,40}") {
        let rules = rules(&json!({"build": {"images": ["r.example/app:{{ref_slug}}", "r.example/app:{{branch}}"]}}));
        let mut event = sample(EventKind::Push);
        event.branch = Some(branch.clone());
        event.reference = Some(format!("refs/heads/{branch}"));
        if let Decision::Build(requests) = rules.decide(hook(), Forge::Github, &event) {
            for image in requests[0]["images"].as_array().expect("names") {
                let image = image.as_str().expect("a text");
                prop_assert!(image.starts_with("r.example/app:"), "{}", image);
            }
        }
    }
}
