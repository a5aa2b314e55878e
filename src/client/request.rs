//! From flags to a request for a build. All that can be known to be wrong without asking the service is found here, all at
//! once, and before a folder is packed: by the same types that the service reads requests with, though without the limits
//! that an installation sets.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    args::{self, Build, Pair},
    context::Context,
    error::{ClientError, Mistake},
    git_url::Place,
    words,
};
use crate::domain::spec::{Builder, CpuMillis, Limits, MemoryBytes, Platform, Resources, request::BuildRequest};

/// Under which note a build says which folder it was made from.
pub(super) const FOLDER: &str = "kiln.folder";

/// A build as it is to be asked for.
#[derive(Debug)]
pub(super) struct Request {
    body: Map<String, Value>,
    /// The folder that has to be sent first.
    pub(super) folder: Option<Context>,
}

impl Request {
    /// Reads the flags, and what they name on this machine.
    pub(super) fn read(flags: &Build) -> Result<Self, ClientError> {
        let mut mistakes = Vec::new();
        let (source, dockerfile, folder) = source(flags, &mut mistakes);
        let body = body(flags, source, dockerfile.as_deref(), folder.as_ref(), &mut mistakes);
        let limits = no_limits(&flags.platforms);
        let document = Value::Object(body);
        if let Err(errors) = BuildRequest::read(&document, &limits) {
            mistakes.extend(errors.into_iter().map(|error| Mistake {
                detail: words::detail(&error.pointer, &error.detail),
                flag: words::flag(&error.pointer, Some(&document)).unwrap_or(error.pointer),
            }));
        }
        match document {
            Value::Object(body) if mistakes.is_empty() => Ok(Self { body, folder }),
            _ => Err(ClientError::Invalid(mistakes)),
        }
    }

    /// Puts the folder that was sent into its place.
    pub(super) fn set_source(&mut self, source: Value) {
        self.body.insert("source".to_owned(), source);
    }

    /// The request, for this project if one is named.
    pub(super) fn document(mut self, project: Option<&str>) -> Value {
        if let Some(project) = project {
            self.body.insert("project".to_owned(), json!(project));
        }
        Value::Object(self.body)
    }
}

/// Nothing that only an installation can say is refused.
fn no_limits(platforms: &[String]) -> Limits {
    let asked: Vec<Platform> = platforms.iter().filter_map(|platform| platform.parse().ok()).collect();
    Limits {
        builders: Builder::ALL.to_vec(),
        platforms: if asked.is_empty() {
            vec![Platform::linux_amd64()]
        } else {
            asked
        },
        max_resources: Resources {
            cpu: CpuMillis(u32::MAX),
            memory: MemoryBytes(u64::MAX),
            disk: MemoryBytes(u64::MAX),
        },
        max_timeout_seconds: u32::MAX,
        max_images: usize::MAX,
        max_build_args: usize::MAX,
        max_build_args_bytes: usize::MAX,
        max_labels: usize::MAX,
        max_annotations_bytes: usize::MAX,
        ..Limits::default()
    }
}

/// The request's `source` and `dockerfile`, and the folder that is to be sent.
fn source(flags: &Build, mistakes: &mut Vec<Mistake>) -> (Value, Option<String>, Option<Context>) {
    let place = Place::parse(&flags.source);
    let mut wrong = |flag: &str, detail: &str| {
        mistakes.push(Mistake {
            flag: flag.to_owned(),
            detail: detail.to_owned(),
        });
    };
    let given = [
        (flags.submodules, "--submodules"),
        (flags.git_credentials.is_some(), "--git-credentials"),
    ];
    for (given, flag) in given {
        if given && !matches!(place, Place::Git(_)) {
            wrong(flag, &format!("is for a git URL, which `{}` is not", flags.source));
        }
    }
    if flags.sha256.is_some() && !matches!(place, Place::Archive(_)) {
        wrong("--sha256", "is for the URL of a tar archive");
    }
    let named = flags.file.as_ref().map(|path| path.to_str());
    if named == Some(None) {
        wrong("--file", "the Dockerfile's name is not UTF-8");
    }
    let named = named.flatten().map(ToOwned::to_owned);
    match place {
        Place::Folder(folder) => {
            // Not known before it was sent, and of no other use.
            let source = json!({"type": "upload", "id": Uuid::now_v7()});
            match Context::read(Path::new(&folder), flags.file.as_deref()) {
                Ok(context) => (source, Some(context.dockerfile.clone()), Some(context)),
                Err(error) => {
                    wrong("the PATH or URL", &error.to_string());
                    (source, None, None)
                }
            }
        }
        Place::Git(git) => {
            let source = json!({
                "type": "git", "url": git.url, "ref": git.reference, "commit": git.commit,
                "subdir": git.subdir, "submodules": flags.submodules, "credentials": flags.git_credentials,
            });
            (source, named, None)
        }
        Place::Archive(url) => {
            let sha256 = flags.sha256.as_ref().map(|digest| digest.trim_start_matches("sha256:"));
            if sha256.is_none() {
                let detail = "required for the URL of a tar archive, so that what is built is what you looked at";
                wrong("--sha256", detail);
            }
            // Without one, once is enough to say so.
            let digest = sha256.map_or_else(|| "0".repeat(64), ToOwned::to_owned);
            (json!({"type": "archive", "url": url, "sha256": digest}), named, None)
        }
    }
}

/// Reads a flag that can be given several times.
fn pairs(
    flag: &str,
    texts: &[String],
    read: impl Fn(&str) -> Result<Pair, String>,
    mistakes: &mut Vec<Mistake>,
) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    for text in texts {
        match read(text) {
            Ok(Pair(name, value)) => {
                pairs.insert(name, value);
            }
            Err(detail) => mistakes.push(Mistake {
                flag: format!("{flag} {text}"),
                detail,
            }),
        }
    }
    pairs
}

/// The request. What no flag sets is left out, so that the service's defaults hold.
fn body(
    flags: &Build,
    source: Value,
    dockerfile: Option<&str>,
    folder: Option<&Context>,
    mistakes: &mut Vec<Mistake>,
) -> Map<String, Value> {
    let mut annotations = pairs("--annotation", &flags.annotations, args::pair, mistakes);
    if let Some(name) = folder.and_then(Context::name) {
        annotations.entry(FOLDER.to_owned()).or_insert(name);
    }
    let mut request = Map::new();
    let mut set = |field: &str, value: Value| {
        let empty = match &value {
            Value::Null => true,
            Value::Array(values) => values.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        if !empty {
            request.insert(field.to_owned(), value);
        }
    };
    set("source", source);
    set("dockerfile", json!(dockerfile));
    set("images", json!(flags.tags));
    if flags.no_push {
        set("push", json!(false));
    }
    let build_args = pairs("--build-arg", &flags.build_args, args::argument, mistakes);
    set("build_args", json!(build_args));
    set(
        "secrets",
        json!(pairs("--secret", &flags.secrets, args::secret, mistakes)),
    );
    set("ssh", json!(flags.ssh));
    set("target", json!(flags.target));
    set("platforms", json!(flags.platforms));
    set("labels", json!(pairs("--label", &flags.labels, args::pair, mistakes)));
    set(
        "template",
        json!(pairs("--template", &flags.template, args::pair, mistakes)),
    );
    set("builder", json!(flags.builder));
    set("registry_credentials", json!(flags.registry_credentials));
    let resources: Map<String, Value> = [("cpu", &flags.cpu), ("memory", &flags.memory), ("disk", &flags.disk)]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))))
        .collect();
    set("resources", Value::Object(resources));
    if flags.no_cache {
        set("cache", json!(false));
    } else if !flags.cache_from.is_empty() || flags.cache_to.is_some() {
        set("cache", json!({"from": flags.cache_from, "to": flags.cache_to}));
    }
    set("timeout_seconds", json!(flags.timeout.map(|timeout| timeout.as_secs())));
    set("priority", json!(flags.priority));
    let group = [("key", &flags.group), ("supersede", &flags.supersede)];
    let mut group: Map<String, Value> = group
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))))
        .collect();
    if flags.serialize {
        group.insert("serialize".to_owned(), json!(true));
    }
    set("group", Value::Object(group));
    if flags.coalesce {
        set("coalesce", json!(true));
    }
    set("annotations", json!(annotations));
    request
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        build: Build,
    }

    fn read(arguments: &[&str]) -> Result<Request, ClientError> {
        let command = Command::try_parse_from([&["build"], arguments].concat()).expect("flags");
        Request::read(&command.build)
    }

    fn mistakes(arguments: &[&str]) -> Vec<String> {
        match read(arguments) {
            Err(ClientError::Invalid(mistakes)) => mistakes
                .into_iter()
                .map(|Mistake { flag, detail }| format!("{flag}: {detail}"))
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_in_words_of_the_command_line() {
        let said = mistakes(&[
            "nowhere",
            "-t",
            "app:1",
            "--platform",
            "beos",
            "--memory",
            "4GB",
            "--cpu",
            "x",
            "--disk",
            "1.5Gi",
            "--secret",
            "id=npm,src=x",
            "--secret",
            "npm=Not A Name",
            "--build-arg",
            "KILN_IS_NOT_SET",
            "--label",
            "a",
            "--label",
            "a b=c",
            "--template",
            "a-b=c",
            "--annotation",
            "=x",
            "--target",
            "a b",
            "--ssh",
            "X",
            "--sha256",
            "7",
            "--submodules",
            "--registry-credentials",
            "Y",
            "--cache-from",
            "cache",
            "--timeout",
            "0",
        ]);
        for begins in [
            "the PATH or URL: can't read nowhere: ",
            "--tag app:1: expected the registry's host in front",
            "--platform beos: ",
            "--memory 4GB: ",
            "--cpu x: ",
            "--disk 1.5Gi: ",
            "--secret id=npm,src=x: expected MOUNT=NAME",
            "--secret npm: expected a secret's name",
            "--build-arg KILN_IS_NOT_SET: expected NAME=VALUE, or the name of a variable that is set",
            "--label a: expected NAME=VALUE",
            "--label a b: ",
            "--template a-b: ",
            "--annotation =x: expected NAME=VALUE",
            "--target a b: ",
            "--ssh X: ",
            "--sha256: is for the URL of a tar archive",
            "--submodules: is for a git URL",
            "--registry-credentials Y: ",
            "--cache-from cache: ",
            "--timeout: ",
        ] {
            assert!(
                said.iter().any(|line| line.starts_with(begins)),
                "{begins:?} isn't in {said:#?}"
            );
        }
        assert_eq!(said.len(), 20, "{said:#?}");
        for api in ["/v1/", "\"push\"", "`ref`", "`subdir`"] {
            assert!(!said.iter().any(|line| line.contains(api)), "{api:?} is in {said:#?}");
        }
    }

    #[test]
    fn each_kind_of_source_has_its_needs() {
        for (arguments, begins) in [
            (
                &["https://git.example/a.git"][..],
                "-t, --tag: required: expected at least one name",
            ),
            (
                &["https://git.example/a.git?x", "--no-push"],
                "the PATH or URL: expected a URL without",
            ),
            (
                &["https://git.example/a.git#a..b", "--no-push"],
                "the PATH or URL: expected a branch",
            ),
            (&["ftp://x/y", "--no-push"], "the PATH or URL: expected the scheme"),
            (&["https://f.example/a.tgz", "--no-push"], "--sha256: required"),
            (
                &["https://f.example/a.tgz", "--no-push", "--sha256", "x"],
                "--sha256 x: expected",
            ),
        ] {
            let said = mistakes(arguments);
            assert!(
                said.len() == 1 && said[0].starts_with(begins),
                "{begins:?} isn't {said:#?}"
            );
            assert!(!said[0].contains("\"push\"") && !said[0].contains("`ref`"), "{said:#?}");
        }
    }

    #[test]
    fn a_folder_is_named_and_what_installations_limit_is_left_to_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let app = folder.path().join("app");
        std::fs::create_dir(&app).expect("made");
        std::fs::write(app.join("Dockerfile"), "FROM scratch\n").expect("written");
        let app = app.to_str().expect("UTF-8");
        let request = read(&[
            app,
            "--no-push",
            "--platform",
            "linux/s390x",
            "--memory",
            "900Gi",
            "--cpu",
            "500",
            "--timeout",
            "90d",
            "--annotation",
            "job=7",
        ])
        .expect("valid");
        let document = request.document(Some("team"));
        assert_eq!(document["annotations"], json!({"job": "7", "kiln.folder": "app"}));
        assert_eq!(
            (&document["project"], &document["push"]),
            (&json!("team"), &json!(false))
        );
        let named = read(&[app, "--no-push", "--annotation", "kiln.folder=mine"]).expect("valid");
        assert_eq!(named.document(None)["annotations"], json!({"kiln.folder": "mine"}));
    }
}
