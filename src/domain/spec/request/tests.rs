//! What is accepted, what is refused and with which words.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::domain::spec::{CpuMillis, MemoryBytes};

fn minimal() -> Value {
    json!({
        "source": {"type": "git", "url": "https://git.example/app.git"},
        "images": ["registry.example/team/app:1"],
    })
}

/// The minimal request with one field set.
fn with(field: &str, value: Value) -> Value {
    let mut document = minimal();
    document[field] = value;
    document
}

fn read(document: &Value) -> Result<BuildRequest, Vec<FieldError>> {
    BuildRequest::read(document, &Limits::default())
}

/// The places of all problems, in order of their report.
fn pointers(document: &Value) -> Vec<String> {
    read(document)
        .expect_err("refused")
        .into_iter()
        .map(|error| error.pointer)
        .collect()
}

#[track_caller]
fn refused(document: &Value, pointer: &str, words: &str) {
    let errors = read(document).expect_err("refused");
    let [error] = errors.as_slice() else {
        panic!("expected one problem: {errors:#?}")
    };
    assert_eq!(error.pointer, pointer);
    assert!(error.detail.contains(words), "{} does not say {words:?}", error.detail);
}

#[test]
fn what_is_left_out_gets_the_defaults() {
    let limits = Limits::default();
    let request = read(&minimal()).expect("accepted");
    assert_eq!(request.project, None);
    let spec = request.spec;
    assert_eq!(spec.dockerfile.as_str(), "Dockerfile");
    assert!(spec.push);
    assert_eq!(spec.builder, Builder::Buildkit);
    assert_eq!(spec.resources, limits.default_resources);
    assert_eq!(spec.timeout_seconds, 3600);
    assert_eq!(spec.priority, 0);
    assert_eq!(spec.platforms, limits.platforms);
    assert_eq!(spec.target, None);
}

#[test]
fn the_whole_form_of_the_contract_is_accepted() {
    let request = read(&json!({
        "project": "default",
        "source": {"type": "git", "url": "https://git.example/app.git", "ref": "main", "commit": null, "subdir": "",
                   "submodules": false, "credentials": null},
        "dockerfile": "Dockerfile", "template": null, "build_args": {"K": "v"}, "target": null,
        "platforms": ["linux/amd64"], "labels": {},
        "images": ["registry.example/team/app:1"], "push": true, "registry_credentials": null, "cache": null,
        "builder": "buildkit", "resources": {"cpu": "2", "memory": "4Gi", "disk": "20Gi"}, "timeout_seconds": 3600,
        "priority": 0, "annotations": {},
    }))
    .expect("accepted");
    let mut minimal = read(&minimal()).expect("accepted").spec;
    minimal
        .build_args
        .insert("K".parse().expect("name"), "v".parse().expect("value"));
    let Source::Git { reference, .. } = &mut minimal.source else {
        panic!("git")
    };
    *reference = Some("main".parse().expect("ref"));
    assert_eq!(request.spec, minimal);
    assert_eq!(request.project.as_ref().map(ProjectName::as_str), Some("default"));
}

#[test]
fn a_spec_of_before_there_were_templates_reads_back() {
    let spec = read(&minimal()).expect("accepted").spec;
    let mut stored = serde_json::to_value(&spec).expect("serialises");
    stored
        .as_object_mut()
        .expect("an object")
        .remove("template")
        .expect("null");
    assert_eq!(serde_json::from_value::<BuildSpec>(stored).expect("reads back"), spec);
}

#[test]
fn a_dockerfile_counts_from_the_context_or_from_the_root() {
    for (path, from_root) in [("a/b", None), ("/a/b", Some("a/b"))] {
        let spec = read(&with("dockerfile", json!(path))).expect("accepted").spec;
        assert_eq!(spec.dockerfile.as_str(), path);
        assert_eq!(spec.dockerfile.from_root(), from_root);
    }
    for path in ["/", "//a", "/a/", "/../a", "a/../b", "", "a\u{0}"] {
        assert_eq!(pointers(&with("dockerfile", json!(path))), ["/dockerfile"], "{path:?}");
    }
    let files = json!({"type": "inline", "files": {"x/Dockerfile": "FROM scratch\n"}});
    let mut document = with("source", files);
    document["dockerfile"] = json!("/x/Dockerfile");
    assert!(read(&document).is_ok());
}

#[test]
fn secrets_are_named_and_said_what_for() {
    let mut document = minimal();
    document["source"]["credentials"] = json!("forge");
    document["registry_credentials"] = json!(["hub", "mirror"]);
    document["secrets"] = json!({"npm": "npm-token", "pip.conf": "pip"});
    document["ssh"] = json!("forge");
    let spec = read(&document).expect("accepted").spec;
    let needs: Vec<_> = spec
        .needs()
        .iter()
        .map(|need| (need.pointer(true), need.name.as_str()))
        .collect();
    assert_eq!(
        needs,
        [
            ("/source/credentials", "forge"),
            ("/registry_credentials/0", "hub"),
            ("/registry_credentials/1", "mirror"),
            ("/secrets/npm", "npm-token"),
            ("/secrets/pip.conf", "pip"),
            ("/ssh", "forge"),
        ]
        .map(|(pointer, name)| (pointer.to_owned(), name))
    );
    document["registry_credentials"] = json!("hub");
    let spec = read(&document).expect("accepted").spec;
    assert_eq!(spec.registry_credentials.len(), 1);
    assert_eq!(spec.needs()[1].pointer(false), "/registry_credentials");
    document["registry_credentials"] = json!((0..9).map(|n| format!("r{n}")).collect::<Vec<_>>());
    assert_eq!(pointers(&document), ["/registry_credentials"]);
}

#[test]
fn specifications_from_before_there_were_secrets_are_read() {
    let mut stored = serde_json::to_value(read(&minimal()).expect("accepted").spec).expect("serialises");
    let fields = stored.as_object_mut().expect("an object");
    for field in ["registry_credentials", "secrets", "ssh"] {
        assert!(fields.remove(field).is_some(), "{field}");
    }
    let source = fields["source"].as_object_mut().expect("an object");
    assert!(source.remove("credentials").is_some());
    let spec: BuildSpec = serde_json::from_value(stored).expect("reads back");
    assert_eq!(spec.needs(), []);
}

#[test]
fn every_problem_is_reported_at_once() {
    let document = json!({
        "project": "No Such",
        "source": {"type": "git", "url": "ftp://x/y", "ref": "a..b", "commit": "abc", "subdir": "../x",
                   "submodules": "yes", "credentials": "Not A Name", "branch": "main"},
        "dockerfile": "../etc/passwd", "template": {"a": 1, "b-c": 2, "d": "\u{0}"}, "build_args": {"A~/B": "v", "OK": 1}, "target": "-x",
        "platforms": ["linux/arm64", "beos"], "labels": {"a b": "x\ny"},
        "images": ["app:1", 7, "r.example/a:1", "r.example/a:1"], "push": true, "registry_credentials": ["ok", "x y", "ok"],
        "secrets": {"a,b": "ok", "B": "x y"}, "ssh": 1,
        "cache": {"from": ["app"], "mode": "all"}, "builder": "kaniko", "resources": {"cpu": "999", "memory": 4, "gpu": "1"}, "timeout_seconds": 0,
        "priority": 40000, "annotations": {"": 1, "n": ["\u{0}"]}, "dockerFile": "x",
    });
    let mut pointers = pointers(&document);
    pointers.sort();
    let mut expected = [
        "/project",
        "/source/url",
        "/source/ref",
        "/source/commit",
        "/source/subdir",
        "/source/submodules",
        "/source/credentials",
        "/source/branch",
        "/dockerfile",
        "/template/b-c",
        "/template/d",
        "/build_args/A~0~1B",
        "/build_args/OK",
        "/target",
        "/platforms",
        "/platforms/0",
        "/platforms/1",
        "/labels/a b",
        "/labels/a b",
        "/images/0",
        "/images/1",
        "/images/3",
        "/registry_credentials/1",
        "/registry_credentials/2",
        "/secrets/a,b",
        "/secrets/B",
        "/ssh",
        "/cache/from/0",
        "/cache/mode",
        "/builder",
        "/resources/cpu",
        "/resources/memory",
        "/resources/gpu",
        "/timeout_seconds",
        "/priority",
        "/annotations/",
        "/annotations/n",
        "/dockerFile",
    ];
    expected.sort_unstable();
    assert_eq!(pointers, expected);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_would_be_right_is_said() {
    for (document, pointer, words) in [
        (json!([]), "", "expected an object, got an array"),
        (json!(null), "", "expected an object, got null"),
        (
            json!({"images": ["r.example/a:1"]}),
            "/source",
            r#"required: expected an object such as `{"type": "git""#,
        ),
        (
            with("source", json!("https://git.example/app.git")),
            "/source",
            "expected an object, got a string",
        ),
        (
            with("source", json!({"url": "x"})),
            "/source/type",
            "expected `git`, `inline`, `archive` or `upload`",
        ),
        (
            with("source", json!({"type": "gti"})),
            "/source/type",
            "did you mean `git`?",
        ),
        (
            with("source", json!({"type": "upload", "id": "x"})),
            "/source/id",
            "that `POST /v1/uploads` answered with",
        ),
        (
            with("source", json!({"type": "git"})),
            "/source/url",
            "required: expected a git URL such as",
        ),
        (
            with("source", json!({"type": "inline"})),
            "/source/files",
            "expected 1 to 256 files",
        ),
        (with("images", json!([])), "/images", r#"set `"push": false`"#),
        (
            with("images", json!("r.example/a:1")),
            "/images",
            "expected an array, got a string",
        ),
        (
            with("images", json!(["team/app:1"])),
            "/images/0",
            "expected the registry's host in front",
        ),
        (
            with("dockerfile", json!("")),
            "/dockerfile",
            "left out it is `Dockerfile`",
        ),
        (
            with("dokerfile", json!("x")),
            "/dokerfile",
            "did you mean `dockerfile`?",
        ),
        (
            with("wat", json!(1)),
            "/wat",
            "unknown field; expected `project`, `source`",
        ),
        (
            with("builder", json!("buildkti")),
            "/builder",
            "did you mean `buildkit`?",
        ),
        (
            with("resources", json!({"cpu": 2})),
            "/resources/cpu",
            "expected a string, got a number",
        ),
        (
            with("resources", json!({"memory": "1Ti"})),
            "/resources/memory",
            "expected at most `64Gi`, got `1Ti`",
        ),
        (
            with("timeout_seconds", json!(1.5)),
            "/timeout_seconds",
            "expected a whole number from 1 to 86400",
        ),
        (
            with("timeout_seconds", json!("60")),
            "/timeout_seconds",
            "whole number from 1 to 86400, got a string",
        ),
        (
            with("push", json!("yes")),
            "/push",
            "expected true or false, got a string",
        ),
        (
            with("platforms", json!([])),
            "/platforms",
            "expected exactly one platform, got 0",
        ),
        (
            with("platforms", json!(["linux/s390x"])),
            "/platforms/0",
            "expected `linux/amd64`",
        ),
        (
            with("build_args", json!({"a": null})),
            "/build_args/a",
            "expected a string, got null",
        ),
    ] {
        refused(&document, pointer, words);
    }
}

#[test]
fn images_are_only_needed_for_a_push() {
    let mut document = with("push", json!(false));
    document.as_object_mut().expect("object").remove("images");
    assert_eq!(read(&document).expect("accepted").spec.images, []);
}

#[test]
fn an_inline_source_is_checked_file_by_file() {
    let files = json!({"Dockerfile": "FROM scratch\n", "a/b": "x"});
    let good = with("source", json!({"type": "inline", "files": files}));
    assert!(read(&good).is_ok());
    let bad = json!({"Dockerfile": "FROM scratch\n", "../up": "x", "a": "x", "a/b": "x", "n": 1, "z": "\u{0}"});
    assert_eq!(
        pointers(&with("source", json!({"type": "inline", "files": bad}))),
        [
            "/source/files/n",
            "/source/files/..~1up",
            "/source/files/z",
            "/source/files/a~1b"
        ]
    );
    refused(
        &with("source", json!({"type": "inline", "files": {"a": "x"}})),
        "/dockerfile",
        "not among the files of the source",
    );
}

#[test]
fn counts_and_sizes_are_limited() {
    let many = |n: usize, value: &str| -> Value {
        (0..n)
            .map(|i| (format!("K{i}"), value.into()))
            .collect::<Map<_, _>>()
            .into()
    };
    let images: Vec<_> = (0..17).map(|i| format!("r.example/a:{i}")).collect();
    refused(&with("images", json!(images)), "/images", "at most 16 names, got 17");
    refused(
        &with("build_args", many(101, "v")),
        "/build_args",
        "at most 100 entries",
    );
    refused(
        &with("build_args", many(10, &"v".repeat(4000))),
        "/build_args",
        "at most 32768 bytes",
    );
    refused(&with("labels", many(65, "v")), "/labels", "at most 64 entries");
    refused(
        &with("annotations", json!({"a": "x".repeat(16 * 1024)})),
        "/annotations",
        "at most 16384 bytes",
    );
}

#[test]
fn the_installation_decides_what_is_offered() {
    let limits = Limits {
        builders: vec![Builder::Buildah],
        platforms: vec!["linux/arm64".parse().expect("platform")],
        ..Limits::default()
    };
    let spec = BuildRequest::read(&minimal(), &limits).expect("accepted").spec;
    assert_eq!(spec.builder, Builder::Buildah);
    assert_eq!(spec.platforms, limits.platforms);
    assert!(BuildRequest::read(&with("builder", json!("buildkit")), &limits).is_err());
}

#[test]
fn resources_can_be_given_in_part() {
    let spec = read(&with("resources", json!({"memory": "512Mi"})))
        .expect("accepted")
        .spec;
    assert_eq!(spec.resources.memory, MemoryBytes(512 << 20));
    assert_eq!(spec.resources.cpu, CpuMillis(2000));
}

/// Any JSON value at all.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}|[\\x00-\\x1f]{1,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map("\\PC{0,6}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Mostly plausible requests: known fields with values that are right, nearly right, or anything.
fn any_request() -> impl Strategy<Value = Value> {
    fn pick(values: &[Value]) -> impl Strategy<Value = Value> + use<> {
        prop_oneof![9 => proptest::sample::select(values.to_vec()), 1 => any_json()]
    }
    let hash = "0123456789".repeat(4);
    let fields: Vec<(&'static str, Vec<Value>)> = vec![
        ("project", vec![json!(null), json!("default"), json!("a-b")]),
        (
            "source",
            vec![
                json!({"type": "git", "url": "https://git.example/a.git"}),
                json!({"type": "git", "url": "ssh://git@h/a", "ref": "refs/heads/x", "subdir": "a/b", "submodules": true}),
                json!({"type": "git", "url": "http://h:1/a", "commit": hash}),
                json!({"type": "inline", "files": {"Dockerfile": "FROM scratch\n", "x/Dockerfile": "é"}}),
            ],
        ),
        (
            "dockerfile",
            vec![
                json!(null),
                json!("Dockerfile"),
                json!("x/Dockerfile"),
                json!("/x/Dockerfile"),
            ],
        ),
        (
            "template",
            vec![json!(null), json!({}), json!({"a": 1.5, "b_2": ["x", {"y": null}]})],
        ),
        ("build_args", vec![json!({}), json!({"A": "", "B_1": "x y\n--z"})]),
        ("target", vec![json!(null), json!("final")]),
        ("platforms", vec![json!(null), json!(["linux/amd64"])]),
        ("labels", vec![json!({}), json!({"a.b/c": "d e"})]),
        (
            "images",
            vec![json!(["r.example/a"]), json!(["localhost:5000/a/b:1", "docker.io/a:2"])],
        ),
        ("push", vec![json!(true), json!(false), json!(null)]),
        ("builder", vec![json!(null), json!("buildah"), json!("buildkit")]),
        (
            "resources",
            vec![json!(null), json!({"cpu": "1500m", "memory": "1001", "disk": "5G"})],
        ),
        ("timeout_seconds", vec![json!(null), json!(1), json!(86400)]),
        ("priority", vec![json!(null), json!(-32768), json!(7)]),
        (
            "group",
            vec![
                json!(null),
                json!({"key": "a/é"}),
                json!({"key": "k", "supersede": "running"}),
            ],
        ),
        ("coalesce", vec![json!(null), json!(true)]),
        (
            "annotations",
            vec![
                json!({}),
                json!({"a": {"b": [1, -1.516_889_937_214_241e-250, null, "é"]}}),
            ],
        ),
    ];
    let strategies: Vec<_> = fields
        .into_iter()
        .map(|(name, values)| proptest::option::weighted(0.9, pick(&values)).prop_map(move |value| (name, value)))
        .collect();
    strategies.prop_map(|fields| {
        fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect::<Map<_, _>>()
            .into()
    })
}

#[test]
fn a_cache_is_a_reference_an_object_or_none() {
    let base =
        json!({"source": {"type": "git", "url": "https://git.example/a.git"}, "images": ["registry.example/app:1"]});
    let with = |cache: Value, builder: &str| {
        let mut document = base.clone();
        document["cache"] = cache;
        document["builder"] = json!(builder);
        read_offering_both(&document)
    };
    let short = with(json!("registry.example/cache"), "buildkit").expect("valid");
    let cache = short.spec.cache.expect("a cache");
    assert_eq!(cache.from.len(), 1);
    assert_eq!(cache.from.first(), cache.to.as_ref());
    assert!(!short.projects_cache);
    assert!(with(Value::Null, "buildkit").expect("valid").projects_cache);
    let none = with(json!(false), "buildkit").expect("valid");
    assert!(!none.projects_cache && none.spec.cache.is_none());

    let two = json!({"from": ["registry.example/a", "registry.example/b"]});
    assert!(with(two.clone(), "buildkit").is_ok() && with(json!("registry.example/a:1"), "buildkit").is_ok());
    for (cache, words) in [
        (two, "one reference"),
        (json!("registry.example/a:1"), "without a tag"),
        (json!(true), "expected a reference"),
    ] {
        let errors = with(cache, "buildah").expect_err("refused");
        assert_eq!(errors[0].pointer, "/cache");
        assert!(errors[0].detail.contains(words), "{errors:?}");
    }
}

fn read_offering_both(document: &Value) -> Result<BuildRequest, Vec<FieldError>> {
    let limits = Limits {
        builders: vec![Builder::Buildkit, Builder::Buildah],
        ..Limits::default()
    };
    BuildRequest::read(document, &limits)
}

proptest! {
    #[test]
    fn no_document_is_too_strange(document in any_json()) {
        if let Err(errors) = read(&document) {
            prop_assert!(!errors.is_empty());
        }
    }

    #[test]
    fn every_problem_has_its_place_and_every_accepted_spec_reads_back(document in any_request()) {
        match read(&document) {
            Ok(BuildRequest { spec, .. }) => {
                let text = serde_json::to_string(&spec).expect("serializes");
                prop_assert_eq!(serde_json::from_str::<BuildSpec>(&text).expect("reads back"), spec);
                prop_assert!(!text.contains("\\u0000"), "the database can't hold it");
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    let parent = error.pointer.rsplit_once('/').map_or("", |(parent, _)| parent);
                    prop_assert!(document.pointer(parent).is_some(), "{} leads nowhere", error.pointer);
                    prop_assert!(!error.detail.is_empty());
                }
            }
        }
    }

    #[test]
    fn a_good_request_stays_good(document in any_request()) {
        // Whatever was accepted once is accepted again from its own spec.
        if let Ok(BuildRequest { spec, .. }) = read(&document) {
            let again = serde_json::to_value(&spec).expect("serializes");
            prop_assert_eq!(read(&again).map(|request| request.spec), Ok(spec));
        }
    }
}
