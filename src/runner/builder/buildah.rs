//! Buildah with chroot isolation: no daemon, works as root without privileges and on a plain host.
//!
//! Facts behind the arguments: buildah's manual pages, `containers-registries.conf(5)`, and runs of 1.28.2.

use std::path::PathBuf;

use kiln_agent::wire::plan::{Command, DigestFile, File, Otherwise, Progress, RunPlan};
use toml::{Table, Value};

use super::{Env, context, credentials, dockerfile, platforms, text};
use crate::{
    domain::{
        failure::Failure,
        spec::{BuildSpec, ImageRef},
    },
    runner::{
        builder::failure::{self, Cause},
        registry::Registry,
    },
};

/// What the image is called between build and push; storage is the attempt's alone.
const LOCAL_NAME: &str = "localhost/kiln-build";

/// How layers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageDriver {
    /// By overlay mounts: quick; needs root, or user namespaces on kernel 5.13 or later.
    Overlay,
    /// By copies: works everywhere.
    Vfs,
}

impl StorageDriver {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Vfs => "vfs",
        }
    }
}

/// How to build with buildah.
pub fn plan(spec: &BuildSpec, env: &Env<'_>) -> RunPlan {
    let registries = env.scratch.join("registries.conf");
    let digest = env.scratch.join("digest");
    // With what it has built kept in its storage, the build goes on where it was.
    let without_leaving = spec
        .cache
        .as_ref()
        .is_some_and(|cache| cache.to.is_some())
        .then(|| Otherwise {
            said: "Error: failed pushing cache to ".to_owned(),
            remark: "The cache can't be written; going on without.".to_owned(),
            argv: build_argv(spec, env, false),
        });
    let mut commands = vec![Command {
        argv: build_argv(spec, env, true),
        progress: Some(Progress::Buildah),
        otherwise: without_leaving,
    }];
    if spec.push {
        // One image, so that all pushes give the same digest; whoever checks it asks each registry.
        commands.extend(spec.images.iter().map(|image| Command {
            argv: push_argv(spec, image, env, &text(&digest)),
            progress: None,
            otherwise: None,
        }));
    }
    let has_authority = env.registries.iter().any(|registry| registry.ca.is_some());
    RunPlan {
        folders: vec![env.storage.to_owned()],
        files: [File {
            path: registries.clone(),
            content: registries_conf(env.registries),
        }]
        .into_iter()
        .chain(authorities(env))
        .collect(),
        env: [
            Some(("CONTAINERS_REGISTRIES_CONF".to_owned(), text(&registries))),
            // Where certificate authorities are looked for, and a login of the host's user, which is to be found as long
            // as there are none.
            has_authority.then(|| ("HOME".to_owned(), text(&home(env)))),
        ]
        .into_iter()
        .flatten()
        .chain(credentials::registry_auth_file(env))
        .collect(),
        service: None,
        commands,
        digest: spec.push.then_some(DigestFile::Text { path: digest }),
        mask: credentials::masked_in_build(env),
        grace_seconds: env.grace_seconds,
    }
}

fn home(env: &Env<'_>) -> PathBuf {
    env.scratch.join("home")
}

/// Registries' own certificate authorities, each for its registry only (`containers-certs.d(5)`).
fn authorities(env: &Env<'_>) -> impl Iterator<Item = File> {
    let folder = home(env).join(".config/containers/certs.d");
    env.registries.iter().filter_map(move |registry| {
        Some(File {
            path: folder.join(&registry.host).join("ca.crt"),
            content: registry.ca.clone()?,
        })
    })
}

fn buildah(env: &Env<'_>) -> Vec<String> {
    [
        "buildah",
        "--root",
        &text(&env.storage.join("root")),
        "--runroot",
        &text(&env.storage.join("run")),
        "--storage-driver",
        env.storage_driver.as_str(),
    ]
    .map(str::to_owned)
    .into()
}

/// The build; it may leave results of steps in the cache or not.
fn build_argv(spec: &BuildSpec, env: &Env<'_>, leaves: bool) -> Vec<String> {
    let context = context(&spec.source, env);
    let mut argv = buildah(env);
    // An OCI configuration has no place for HEALTHCHECK, ONBUILD and SHELL; buildah would drop them with a warning.
    argv.extend(["build", "--isolation", "chroot", "--format", "docker"].map(str::to_owned));
    match &spec.cache {
        None => argv.push("--layers=false".to_owned()),
        Some(cache) => {
            argv.push("--layers=true".to_owned());
            // It gives the tags itself, one for each step.
            let repository = |cache: &ImageRef| format!("{}/{}", cache.registry(), cache.repository());
            for from in &cache.from {
                argv.extend(["--cache-from".to_owned(), repository(from)]);
            }
            if let Some(to) = cache.to.as_ref().filter(|_| leaves) {
                argv.extend(["--cache-to".to_owned(), repository(to)]);
            }
        }
    }
    let mut pair = |flag: &str, value: String| argv.extend([flag.to_owned(), value]);
    let (folder, dockerfile) = dockerfile(spec, env);
    pair("--file", format!("{folder}/{dockerfile}"));
    pair("--platform", platforms(spec));
    if let Some(target) = &spec.target {
        pair("--target", target.to_string());
    }
    for (name, value) in &spec.build_args {
        pair("--build-arg", format!("{name}={value}"));
    }
    for (key, value) in &spec.labels {
        pair("--label", format!("{key}={value}"));
    }
    pair(
        if is_index(spec) { "--manifest" } else { "--tag" },
        LOCAL_NAME.to_owned(),
    );
    argv.extend(credentials::mount_flags(env));
    argv.push(context);
    argv
}

fn push_argv(spec: &BuildSpec, image: &ImageRef, env: &Env<'_>, digest: &str) -> Vec<String> {
    let mut argv = buildah(env);
    if is_index(spec) {
        argv.extend(["manifest", "push", "--all"].map(str::to_owned));
    } else {
        argv.push("push".to_owned());
    }
    // `manifest push` of 1.28 goes by this flag alone, not by registries.conf.
    if super::insecure(env.registries, image) {
        argv.push("--tls-verify=false".to_owned());
    }
    argv.extend(["--digestfile", digest, LOCAL_NAME].map(str::to_owned));
    argv.push(format!("docker://{image}"));
    argv
}

/// Whether several platforms make the result an index.
fn is_index(spec: &BuildSpec) -> bool {
    spec.platforms.len() > 1
}

fn registries_conf(registries: &[Registry]) -> String {
    let insecure = |host: &str| {
        // A mirror may have a path, an entry is about a host.
        let host = host.split('/').next().unwrap_or(host);
        registries
            .iter()
            .any(|registry| registry.insecure && registry.host == host)
    };
    let location = |host: &str| {
        Table::from_iter([
            ("location".to_owned(), host.into()),
            ("insecure".to_owned(), insecure(host).into()),
        ])
    };
    let entries = registries.iter().map(|registry| {
        let mut entry = location(&registry.host);
        if !registry.mirrors.is_empty() {
            let mirrors: Vec<Value> = registry.mirrors.iter().map(|mirror| location(mirror).into()).collect();
            entry.insert("mirror".to_owned(), mirrors.into());
        }
        Value::from(entry)
    });
    Table::from_iter([
        (
            "unqualified-search-registries".to_owned(),
            vec![Value::from("docker.io")].into(),
        ),
        // Never asks a terminal which registry is meant.
        ("short-name-mode".to_owned(), "disabled".into()),
        ("registry".to_owned(), entries.collect::<Vec<_>>().into()),
    ])
    .to_string()
}

/// Tells apart the failures of `buildah build` and `buildah push`. `None` when the output holds no error of its.
pub(super) fn explain(tail: &str) -> Option<Failure> {
    let (place, mut error) = failure::last_line_after(tail, "Error: ")?;
    if error.starts_with("deleting build container ") {
        // What failed while clearing up is wrapped, over several lines, around what failed at first.
        let (_, first) = failure::last_line_after(&tail[place..], ": ").unwrap_or((0, error));
        error = first;
    }
    if let Some(rest) = error.strip_prefix("pushing ") {
        // pushing image "local" to "docker://registry/name:tag": why
        let (_, target) = rest.split_once("\"docker://")?;
        let (image, cause) = target.split_once("\": ")?;
        return Some(failure::push_failed(image, Cause::of(cause)));
    }
    if failure::is_out_of_disk(error) {
        return Some(failure::out_of_disk());
    }
    if let Some(rest) = error.strip_prefix("building at STEP \"") {
        let (step, message) = rest.split_once("\": ")?;
        return Some(step_failed(step, message, tail));
    }
    if let Some(message) = error.strip_prefix("creating build container: ") {
        let image = from_line(tail)
            .or_else(|| Some(message.split_once("docker://")?.1.split_once(": ")?.0))
            .or_else(|| message.split('"').nth(1))
            .unwrap_or("");
        return Some(failure::base_image(image, pull_cause(message)));
    }
    // Where the file lies is known to whoever named it.
    if error.starts_with("no contents in ") {
        return Some(failure::dockerfile_invalid("it is empty", None));
    }
    if error == "building: no stages to build" {
        return Some(failure::dockerfile_invalid("there is no instruction in it", None));
    }
    let message = error.strip_prefix("parsing main Dockerfile: ").unwrap_or(error);
    let known = ["no FROM statement found", "The target ", "stat ", "open "]
        .iter()
        .any(|start| error.starts_with(start));
    if known || message.len() < error.len() {
        return Some(failure::dockerfile_invalid(message, None));
    }
    Some(failure::build_failed(error, None))
}

/// The image that the last `FROM` names, as the Dockerfile has it.
fn from_line(tail: &str) -> Option<&str> {
    let lines = tail.lines().rev();
    let mut steps = lines.filter_map(|line| line.strip_prefix("STEP ")?.split_once(": FROM "));
    steps.next()?.1.split(' ').find(|word| !word.starts_with("--"))
}

/// Why no source had the image. Where mirrors stand in for a registry that can't be reached, theirs is the word that
/// counts.
fn pull_cause(message: &str) -> Cause {
    let of_mirrors = message
        .split_once("(Mirrors also failed: [")
        .and_then(|(_, rest)| rest.split_once("]): "));
    match of_mirrors {
        Some((mirrors, origin)) => match Cause::of(origin) {
            Cause::UnknownHost | Cause::Refused | Cause::Timeout | Cause::Tls => Cause::of(mirrors),
            cause => cause,
        },
        None => Cause::of(message),
    }
}

fn step_failed(step: &str, message: &str, tail: &str) -> Failure {
    if message.starts_with("exit status ") {
        let command = step.strip_prefix("RUN ").unwrap_or(step);
        // The chroot isolation turns a signal into exit status 1 and says so before.
        let killed = tail.lines().any(|line| line == "subprocess exited on killed");
        return failure::command_failed(command, None, if killed { "signal: killed" } else { message });
    }
    if let Some((_, rest)) = message.split_once("Unknown instruction: ") {
        let instruction = rest.split_whitespace().next().unwrap_or(rest).trim_matches('"');
        if has_heredoc(tail) {
            return heredoc();
        }
        return failure::dockerfile_invalid(&format!("unknown instruction: {instruction}"), None);
    }
    // COPY only supports the --chmod=<permissions> … flags
    if message.contains(" only supports the --") {
        return failure::dockerfile_invalid(
            &format!("`{step}`: {message}. The builder `buildkit` knows more of them."),
            None,
        );
    }
    // What the instruction takes, by imagebuilder.
    let misused = [
        " requires at least ",
        " requires exactly ",
        "Bad input to ",
        "Unknown flag: ",
    ];
    if misused.iter().any(|words| message.contains(words)) || message.contains("invalid mount type") {
        return failure::dockerfile_invalid(&format!("`{step}`: {message}"), None);
    }
    if let Some(path) = message
        .strip_suffix("\": no such file or directory")
        .and_then(|message| message.rsplit_once("copier: stat: \""))
        .map(|(_, path)| path)
    {
        if path.trim_start_matches('/').starts_with("<<") {
            return heredoc();
        }
        return failure::missing_in_context(path.trim_start_matches('/'), None);
    }
    failure::build_failed(&format!("`{step}`: {message}"), None)
}

/// Whether an instruction that was carried out has a heredoc, of which buildah before 1.33 knows nothing: to it the
/// document's first line is the next instruction.
fn has_heredoc(tail: &str) -> bool {
    tail.lines()
        .filter_map(|line| line.split_once("STEP ")?.1.split_once(": "))
        .any(|(_, instruction)| instruction.contains("<<"))
}

fn heredoc() -> Failure {
    failure::dockerfile_invalid(
        "this version of buildah knows no heredocs (`<<EOF`). Use the builder `buildkit`, or write the text in ordinary instructions.",
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{
            failure::FailureCode,
            spec::{Builder, Cache, CacheMode},
        },
        runner::builder::tests::{env, registries, spec, values},
    };

    #[test]
    fn every_value_is_one_argument() {
        let registries = registries();
        let plan = plan(&spec(Builder::Buildah), &env(&registries));
        let [build, first, second] = plan.commands.as_slice() else {
            panic!("one build and a push for each image, not {:?}", plan.commands);
        };
        assert_eq!(
            values(&build.argv, "--file"),
            ["/kiln/source/tree/svc/api/docker/Dockerfile"]
        );
        assert_eq!(values(&build.argv, "--target"), ["final"]);
        assert_eq!(
            values(&build.argv, "--build-arg"),
            ["GREETING=--hello, $(world) \"=\"\n"]
        );
        assert_eq!(values(&build.argv, "--label"), ["org.example/team=a,b"]);
        assert_eq!(values(&build.argv, "--tag"), [LOCAL_NAME]);
        assert_eq!(build.argv.last().unwrap(), "/kiln/source/tree/svc/api");
        assert_eq!(first.argv.last().unwrap(), "docker://registry.example:5000/team/app:1");
        assert!(first.argv.contains(&"--tls-verify=false".to_owned()));
        assert_eq!(second.argv.last().unwrap(), "docker://docker.io/team/app:latest");
        assert!(!second.argv.contains(&"--tls-verify=false".to_owned()));
        assert_eq!(
            plan.digest,
            Some(DigestFile::Text {
                path: "/kiln/scratch/digest".into()
            })
        );
        assert_eq!(plan.env["CONTAINERS_REGISTRIES_CONF"], "/kiln/scratch/registries.conf");
    }

    #[test]
    fn several_platforms_make_an_index() {
        let mut spec = spec(Builder::Buildah);
        spec.platforms.push("linux/arm64".parse().unwrap());
        let plan = plan(&spec, &env(&[]));
        assert_eq!(values(&plan.commands[0].argv, "--manifest"), [LOCAL_NAME]);
        assert_eq!(
            values(&plan.commands[0].argv, "--platform"),
            ["linux/amd64,linux/arm64"]
        );
        assert_eq!(values(&plan.commands[1].argv, "manifest"), ["push"]);
    }

    #[test]
    fn without_push_it_only_builds() {
        let mut spec = spec(Builder::Buildah);
        spec.push = false;
        spec.images.clear();
        let plan = plan(&spec, &env(&[]));
        assert_eq!((plan.commands.len(), plan.digest), (1, None));
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_gone_round() {
        let mut spec = spec(Builder::Buildah);
        let reference: ImageRef = "registry.example/cache".parse().unwrap();
        spec.cache = Some(Cache {
            from: vec![reference.clone()],
            to: Some(reference),
            mode: CacheMode::Min,
        });
        let with = plan(&spec, &env(&[])).commands.swap_remove(0);
        assert_eq!(values(&with.argv, "--cache-to"), ["registry.example/cache"]);
        let otherwise = with.otherwise.unwrap().argv;
        assert!(values(&otherwise, "--cache-to").is_empty());
        assert_eq!(values(&otherwise, "--cache-from"), ["registry.example/cache"]);
        assert_eq!(otherwise.len() + 2, with.argv.len());
        assert!(otherwise.contains(&"--layers=true".to_owned()));
        spec.cache.as_mut().unwrap().to = None;
        assert_eq!(plan(&spec, &env(&[])).commands[0].otherwise, None);
    }

    #[test]
    fn mirrors_come_with_their_own_trust() {
        let config: Table = registries_conf(&registries()).parse().unwrap();
        let expected: Table = r#"
            unqualified-search-registries = ["docker.io"]
            short-name-mode = "disabled"
            [[registry]]
            location = "docker.io"
            insecure = false
            [[registry.mirror]]
            location = "mirror.example:5000/hub"
            insecure = true
            [[registry.mirror]]
            location = "second.example"
            insecure = false
            [[registry]]
            location = "mirror.example:5000"
            insecure = true
            [[registry]]
            location = "registry.example:5000"
            insecure = true
        "#
        .parse()
        .unwrap();
        assert_eq!(config, expected);
    }

    /// Ends of real output of 1.28.2, and what they must lead to: code and words of the message.
    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn failures_are_told_apart() {
        use FailureCode::{BuildFailed, DockerfileInvalid, Internal, OutOfMemory, PushFailed};
        let cases: [(&str, FailureCode, &[&str]); 26] = [
            (
                "STEP 2/4: RUN <<EOF\nError: building at STEP \"ECHO one > /f\": Build error: Unknown instruction: \"ECHO\" &imagebuilder.Step{}\n",
                DockerfileInvalid,
                &["heredoc", "`buildkit`"],
            ),
            (
                "STEP 2/4: COPY <<EOF /d/\nError: building at STEP \"COPY <<EOF /d/\": checking on sources under \"/x\": copier: stat: \"/<<EOF\": no such file or directory\n",
                DockerfileInvalid,
                &["heredoc", "`buildkit`"],
            ),
            (
                "Error: building at STEP \"COPY --link a /b\": COPY only supports the --chmod=<permissions> --chown=<uid:gid> and the --from=<image|stage> flags\n",
                DockerfileInvalid,
                &["COPY only supports the --chmod", "`buildkit`"],
            ),
            (
                "STEP 2/2: RUN echo hi && exit 3\nhi\nsubprocess exited with status 3\nsubprocess exited with status 3\nError: building at STEP \"RUN echo hi && exit 3\": exit status 3\n",
                BuildFailed,
                &["`echo hi && exit 3`", "exit code 3"],
            ),
            (
                "process exited with error: exec: not startedsubprocess exited with status 1\nError: building at STEP \"RUN /nope x\": exit status 1\n",
                BuildFailed,
                &["`/nope x`", "exit code 1"],
            ),
            (
                "STEP 2/2: RUN kill -9 $$\nsubprocess exited on killed\nsubprocess exited with status 1\nError: building at STEP \"RUN kill -9 $$\": exit status 1\n",
                OutOfMemory,
                &["`kill -9 $$`", "resources.memory"],
            ),
            (
                "Error: building at STEP \"RUN make\": exit status 137\n",
                OutOfMemory,
                &["`make`"],
            ),
            (
                "Error: building at STEP \"FOO \": Build error: Unknown instruction: \"FOO\" &imagebuilder.Step{Env:[]string{\"PATH=/bin\"}, Command:\"foo\"}\n",
                DockerfileInvalid,
                &["unknown instruction: FOO"],
            ),
            (
                "Error: no contents in \"/tmp/x/Dockerfile\"\n",
                DockerfileInvalid,
                &["not valid: it is empty"],
            ),
            (
                "Error: building: no stages to build\n",
                DockerfileInvalid,
                &["no instruction in it"],
            ),
            (
                "STEP 1/2: FROM scratch\nSTEP 2/2: COPY x\nError: building at STEP \"COPY x\": COPY requires at least one argument\n",
                DockerfileInvalid,
                &["`COPY x`: COPY requires at least one argument"],
            ),
            (
                "Error: no FROM statement found\n",
                DockerfileInvalid,
                &["no FROM statement"],
            ),
            (
                "Error: The target \"nope\" was not found in the provided Dockerfile\n",
                DockerfileInvalid,
                &["\"nope\""],
            ),
            (
                "Error: stat /tmp/x/sub/Dockerfile: no such file or directory\n",
                DockerfileInvalid,
                &["sub/Dockerfile"],
            ),
            (
                "Error: parsing main Dockerfile: Dockerfile: LABEL must have two arguments\n",
                DockerfileInvalid,
                &["LABEL must have two arguments"],
            ),
            (
                "Error: building at STEP \"RUN --mount=type=nope echo hi\": resolving mountpoints for container \"03\": invalid mount type \"nope\"\n",
                DockerfileInvalid,
                &["invalid mount type \"nope\""],
            ),
            (
                "Error: building at STEP \"COPY nothere /x\": checking on sources under \"/tmp/x\": copier: stat: \"/nothere\": no such file or directory\n",
                BuildFailed,
                &["`nothere`", "build context"],
            ),
            (
                "Error: building at STEP \"ADD http://h:3999/x /x\": reading \"http://h:3999/x\": Get \"http://h:3999/x\": dial tcp: connect: connection refused\n",
                BuildFailed,
                &["ADD http://h:3999/x", "connection refused"],
            ),
            (
                "Trying to pull h:5050/library/nothere:1...\nError: creating build container: initializing source docker://h:5050/library/nothere:1: reading manifest 1 in h:5050/library/nothere: manifest unknown: manifest unknown\n",
                BuildFailed,
                &["base image `h:5050/library/nothere:1`", "no such image"],
            ),
            (
                "Error: deleting build container \"51\": 2 errors occurred:\n\t* write /s/x.json: no space left on device\n\t* write /s/y.json: no space left on device\n\n: building at STEP \"RUN dd of=/big\": exit status 1\n",
                BuildFailed,
                &["`dd of=/big`", "exit code 1"],
            ),
            (
                "STEP 1/1: FROM library/nothere:9\nTrying to pull docker.io/library/nothere:9...\nError: creating build container: initializing source docker://nothere:9: (Mirrors also failed: [h:5000/library/nothere:9: reading manifest 9 in h:5000/library/nothere: manifest unknown: manifest unknown]): docker.io/library/nothere:9: pinging container registry registry-1.docker.io: Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io on 10.96.0.10:53: no such host\n",
                BuildFailed,
                &["base image `library/nothere:9`", "there is no such image"],
            ),
            (
                "Error: creating build container: Invalid image name \"UPPER/case:1\", unknown transport \"UPPER/case\"\n",
                BuildFailed,
                &["base image `UPPER/case:1`"],
            ),
            (
                "Error: pushing image \"localhost/kiln-build\" to \"docker://h:5401/team/app:1\": trying to reuse blob sha256:ec at destination: checking whether a blob sha256:ec exists in h:5401/team/app: unauthorized: authentication required\n",
                PushFailed,
                &["`h:5401/team/app:1`", "`h:5401` wants credentials"],
            ),
            (
                "time=\"2026-11-23T14:44:36Z\" level=warning msg=\"Failed, retrying in 2s ... (3/3). Error: trying\"\nError: pushing image \"localhost/kiln-build\" to \"docker://h:5999/team/app:1\": trying to reuse blob sha256:ec at destination: pinging container registry h:5999: Get \"http://h:5999/v2/\": dial tcp 127.0.0.1:5999: connect: connection refused\n",
                PushFailed,
                &["nothing answers at `h:5999`"],
            ),
            (
                "Error: pushing image \"localhost/kiln-build\" to \"docker://h:5404/team/app:1\": writing blob: initiating layer upload to /v2/team/app/blobs/uploads/ in h:5404: name unknown: repository name not known to registry\n",
                PushFailed,
                &["Create it first"],
            ),
            (
                "Error: building at STEP \"RUN make\": committing: write /x: no space left on device\n",
                Internal,
                &["no space left", "resources.disk"],
            ),
        ];
        for (tail, code, words) in cases {
            let failure = explain(tail).unwrap_or_else(|| panic!("unexplained: {tail}"));
            assert_eq!(failure.code, code, "{tail}\n{failure:?}");
            for word in words {
                assert!(failure.message.contains(word), "{word} is not in: {}", failure.message);
            }
        }
        assert_eq!(explain("STEP 1/2: FROM x\n"), None);
    }
}
