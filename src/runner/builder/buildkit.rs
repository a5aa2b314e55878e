//! Rootless BuildKit: a daemon of the attempt's own and one `buildctl build`.
//!
//! Facts behind the arguments: BuildKit's `docs/rootless.md`, `docs/buildkitd.toml.md` and `docs/build-repro.md`, and
//! runs of v0.34.2.

use std::path::{Path, PathBuf};

use kiln_agent::wire::{
    plan::{Command, DigestFile, File, Progress, RunPlan, Service},
    report::FailedStep,
};
use toml::{Table, Value};

use super::{Env, context, credentials, dockerfile, platforms, text};
use crate::{
    domain::{
        failure::Failure,
        spec::{BuildSpec, CacheMode},
    },
    runner::{
        builder::failure::{self, Cause},
        registry::Registry,
    },
};

/// How long the daemon may take to answer; it waits for its storage, and nodes can be busy.
const READY_SECONDS: u32 = 60;

/// How to build with BuildKit.
pub fn plan(spec: &BuildSpec, env: &Env<'_>) -> RunPlan {
    let config = env.scratch.join("buildkitd.toml");
    let socket = env.scratch.join("buildkitd.sock");
    let metadata = env.scratch.join("metadata.json");
    let address = format!("unix://{}", text(&socket));
    RunPlan {
        folders: vec![env.storage.to_owned()],
        files: [File {
            path: config.clone(),
            content: daemon_config(env.registries, env.scratch),
        }]
        .into_iter()
        .chain(authorities(env))
        .collect(),
        env: [
            // BuildKit would cut the log of a step after 2 MiB or 200 KiB/s.
            ("BUILDKIT_STEP_LOG_MAX_SIZE", "-1"),
            ("BUILDKIT_STEP_LOG_MAX_SPEED", "-1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .chain(credentials::docker_config_folder(env))
        .collect(),
        service: Some(Service {
            argv: [
                "rootlesskit",
                "--net=host",
                "--copy-up=/run",
                "buildkitd",
                "--oci-worker-no-process-sandbox",
                "--config",
                &text(&config),
                "--addr",
                &address,
                "--root",
                &text(env.storage),
            ]
            .map(str::to_owned)
            .into(),
            socket,
            ready_seconds: READY_SECONDS,
        }),
        commands: vec![Command {
            argv: client_argv(spec, env, &address, &text(&metadata)),
            progress: Some(Progress::BuildkitJson),
            otherwise: None,
        }],
        digest: spec.push.then(|| DigestFile::Json {
            path: metadata,
            pointer: "/containerimage.digest".to_owned(),
        }),
        mask: credentials::masked_in_build(env),
        grace_seconds: env.grace_seconds,
    }
}

fn client_argv(spec: &BuildSpec, env: &Env<'_>, address: &str, metadata: &str) -> Vec<String> {
    let context = context(&spec.source, env);
    let mut argv: Vec<String> = ["buildctl", "--addr", address, "build", "--progress=rawjson"]
        .map(str::to_owned)
        .into();
    argv.extend(["--frontend", "dockerfile.v0"].map(str::to_owned));
    let mut pair = |flag: &str, value: String| argv.extend([flag.to_owned(), value]);
    let (folder, dockerfile) = dockerfile(spec, env);
    pair("--local", format!("context={context}"));
    pair("--local", format!("dockerfile={folder}"));
    pair("--opt", format!("filename={dockerfile}"));
    pair("--opt", format!("platform={}", platforms(spec)));
    if let Some(target) = &spec.target {
        pair("--opt", format!("target={target}"));
    }
    for (name, value) in &spec.build_args {
        pair("--opt", format!("build-arg:{name}={value}"));
    }
    for (key, value) in &spec.labels {
        pair("--opt", format!("label:{key}={value}"));
    }
    if let Some(cache) = &spec.cache {
        for from in &cache.from {
            pair("--import-cache", format!("type=registry,ref={from}"));
        }
        if let Some(to) = &cache.to {
            let mode = match cache.mode {
                CacheMode::Min => "min",
                CacheMode::Max => "max",
            };
            pair(
                "--export-cache",
                format!("type=registry,ref={to},mode={mode},ignore-error=true"),
            );
        }
    }
    // Without an exporter the build is solved and thrown away, which is what a build that isn't pushed asks for.
    if spec.push {
        let names: Vec<String> = spec.images.iter().map(ToString::to_string).collect();
        // The value is one CSV record. How each registry is reached stands in the daemon's configuration;
        // `registry.insecure` here would weaken all of them.
        pair(
            "--output",
            format!("type=image,\"name={}\",push=true,oci-mediatypes=true", names.join(",")),
        );
        pair("--metadata-file", metadata.to_owned());
    }
    argv.extend(credentials::mount_flags(env));
    argv
}

/// The file of a registry's own certificate authority.
fn authority<'r>(registry: &'r Registry, scratch: &Path) -> Option<(PathBuf, &'r str)> {
    let name = format!("{}.pem", registry.host.replace([':', '/'], "_"));
    Some((scratch.join("ca").join(name), registry.ca.as_deref()?))
}

fn authorities(env: &Env<'_>) -> impl Iterator<Item = File> {
    let authorities = env
        .registries
        .iter()
        .filter_map(|registry| authority(registry, env.scratch));
    authorities.map(|(path, pem)| File {
        path,
        content: pem.to_owned(),
    })
}

fn daemon_config(registries: &[Registry], scratch: &Path) -> String {
    // The daemon lives for one build: collecting garbage would only cost time.
    let worker = Table::from_iter([("gc".to_owned(), Value::Boolean(false))]);
    let mut tables = Table::new();
    for registry in registries {
        let mut table = Table::new();
        if !registry.mirrors.is_empty() {
            table.insert("mirrors".to_owned(), registry.mirrors.clone().into());
        }
        if registry.insecure {
            // Both together: HTTPS without verification first, HTTP when the port doesn't speak TLS.
            table.insert("http".to_owned(), true.into());
            table.insert("insecure".to_owned(), true.into());
        }
        if let Some((path, _)) = authority(registry, scratch) {
            table.insert("ca".to_owned(), vec![Value::from(text(&path))].into());
        }
        tables.insert(registry.host.clone(), table.into());
    }
    Table::from_iter([
        (
            "worker".to_owned(),
            Table::from_iter([("oci".to_owned(), worker.into())]).into(),
        ),
        ("registry".to_owned(), tables.into()),
    ])
    .to_string()
}

/// Tells apart the failures of `buildctl build` by the end of its output and the vertex that failed, if one did.
/// `None` when neither holds an error of BuildKit's.
pub(super) fn explain(tail: &str, failed: Option<&FailedStep>) -> Option<Failure> {
    let said = failure::last_line_after(tail, "error: ");
    let line = said.and_then(|(place, _)| excerpt_line(&tail[..place]));
    // The vertex has it whole where a long command has cut the tail.
    if let Some(failed) = failed
        && let Some((process, exit)) = between(&failed.error, "process \"", "\" did not complete successfully: ")
    {
        let command = process.strip_prefix("/bin/sh -c ").unwrap_or(process);
        return Some(failure::command_failed(command, line, exit));
    }
    let Some((_, error)) = said else {
        let failed = failed?;
        return Some(failure::build_failed(
            &format!("`{}`: {}", failed.name, failed.error),
            None,
        ));
    };
    let Some(message) = error.strip_prefix("failed to solve: ") else {
        return Some(failure::internal(&format!("BuildKit gave up: {error}")));
    };
    // The gRPC code of an error, where it has one.
    let (code, message) = [
        "ResourceExhausted",
        "DeadlineExceeded",
        "Unavailable",
        "Canceled",
        "Unknown",
    ]
    .iter()
    .find_map(|&code| Some((code, message.strip_prefix(code)?.strip_prefix(": ")?)))
    .unwrap_or(("", message));
    if matches!(code, "Unavailable" | "Canceled") {
        return Some(failure::internal(&format!("BuildKit's daemon went away: {message}")));
    }
    if let Some((image, cause)) = between(message, "failed to push ", ": ") {
        return Some(failure::push_failed(image, Cause::of(cause)));
    }
    if let Some((process, exit)) = between(message, "process \"", "\" did not complete successfully: ") {
        let command = process.strip_prefix("/bin/sh -c ").unwrap_or(process);
        return Some(failure::command_failed(command, line, exit));
    }
    if failure::is_out_of_memory(error) {
        return Some(failure::out_of_memory("BuildKit was refused more memory"));
    }
    if let Some((image, cause)) = between(message, "", ": failed to resolve source metadata for ") {
        return Some(failure::base_image(image, Cause::of(cause)));
    }
    if let Some((image, cause)) = between(message, "failed to resolve source metadata for ", ": ") {
        return Some(failure::frontend_image(image, Cause::of(cause)));
    }
    if failure::is_out_of_disk(message) {
        return Some(failure::out_of_disk());
    }
    if let Some(path) = message
        .strip_suffix("\": not found")
        .and_then(|message| message.rsplit_once('"'))
        .filter(|(before, _)| before.contains("failed to calculate checksum"))
        .map(|(_, path)| path)
    {
        return Some(failure::missing_in_context(path.trim_start_matches('/'), line));
    }
    if failed.is_some() {
        return Some(failure::build_failed(message, line));
    }
    // Nothing had begun to run: the Dockerfile itself is at fault.
    let (line, message) = match between(message, "dockerfile parse error on line ", ": ") {
        Some((number, message)) => (number.parse().ok().or(line), message),
        None => (line, message),
    };
    Some(failure::dockerfile_invalid(message, line))
}

/// The line that BuildKit's excerpt of the Dockerfile is about: `Dockerfile:2` above a ruler.
fn excerpt_line(text: &str) -> Option<u32> {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .windows(2)
        .rev()
        .filter(|pair| pair[1] == "--------------------")
        .find_map(|pair| pair[0].rsplit_once(':')?.1.parse().ok())
}

/// Splits `<start><found><middle><rest>`, by the first `middle`.
fn between<'a>(text: &'a str, start: &str, middle: &str) -> Option<(&'a str, &'a str)> {
    text.strip_prefix(start)?.split_once(middle)
}

#[cfg(test)]
mod tests {
    use kiln_agent::wire::step::clip_middle;

    use super::*;
    use crate::{
        domain::{failure::FailureCode, spec::Builder},
        runner::builder::tests::{env, registries, spec, values},
    };

    #[test]
    fn every_value_is_one_argument() {
        let registries = registries();
        let plan = plan(&spec(Builder::Buildkit), &env(&registries));
        let argv = &plan.commands[0].argv;
        assert_eq!(
            values(argv, "--local"),
            [
                "context=/kiln/source/tree/svc/api",
                "dockerfile=/kiln/source/tree/svc/api"
            ]
        );
        assert_eq!(
            values(argv, "--opt"),
            [
                "filename=docker/Dockerfile",
                "platform=linux/amd64",
                "target=final",
                "build-arg:GREETING=--hello, $(world) \"=\"\n",
                "label:org.example/team=a,b",
            ]
        );
        assert_eq!(
            values(argv, "--output"),
            [
                "type=image,\"name=registry.example:5000/team/app:1,docker.io/team/app:latest\",push=true,oci-mediatypes=true"
            ]
        );
        assert_eq!(
            plan.digest,
            Some(DigestFile::Json {
                path: "/kiln/scratch/metadata.json".into(),
                pointer: "/containerimage.digest".to_owned(),
            })
        );
        let service = plan.service.unwrap();
        assert_eq!(
            values(&service.argv, "--addr"),
            [format!("unix://{}", service.socket.display())]
        );
        assert_eq!(values(argv, "--addr"), values(&service.argv, "--addr"));
    }

    #[test]
    fn several_platforms_are_one_build() {
        let mut spec = spec(Builder::Buildkit);
        spec.platforms.push("linux/arm64/v8".parse().unwrap());
        let plan = plan(&spec, &env(&[]));
        assert!(values(&plan.commands[0].argv, "--opt").contains(&"platform=linux/amd64,linux/arm64/v8"));
    }

    #[test]
    fn without_push_nothing_is_exported() {
        let mut spec = spec(Builder::Buildkit);
        spec.push = false;
        let plan = plan(&spec, &env(&[]));
        assert_eq!(values(&plan.commands[0].argv, "--output"), [""; 0]);
        assert_eq!(plan.digest, None);
    }

    #[test]
    fn the_daemon_learns_how_registries_are_reached() {
        let config: Table = daemon_config(&registries(), Path::new("/kiln/scratch"))
            .parse()
            .unwrap();
        let expected: Table = r#"
            [worker.oci]
            gc = false
            [registry."docker.io"]
            mirrors = ["mirror.example:5000/hub", "second.example"]
            [registry."mirror.example:5000"]
            http = true
            insecure = true
            [registry."registry.example:5000"]
            http = true
            insecure = true
        "#
        .parse()
        .unwrap();
        assert_eq!(config, expected);
    }

    /// Ends of real output of v0.34.2, and what they must lead to: code and words of the message.
    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn failures_are_told_apart() {
        use FailureCode::{BuildFailed, DockerfileInvalid, Internal, OutOfMemory, PushFailed};
        let run = |command: &str, exit: &str| {
            format!(
                "#5 ERROR: process \"/bin/sh -c {command}\" did not complete successfully: {exit}\n------\n > [2/2] RUN {command}:\n0.041 hi\n------\nDockerfile:2\n--------------------\n   1 |     FROM 10.89.0.1:5000/library/busybox:latest\n   2 | >>> RUN {command}\n   3 |     \n--------------------\nerror: failed to solve: process \"/bin/sh -c {command}\" did not complete successfully: {exit}\n"
            )
        };
        let frontend = |line: u32, message: &str| {
            format!(
                "#1 [internal] load build definition from Dockerfile\n#1 transferring dockerfile: 88B done\n#1 DONE 0.0s\nDockerfile:{line}\n--------------------\n   1 |     FROM 10.89.0.1:5000/library/busybox:latest\n   2 | >>> FOO bar\n   3 |     \n--------------------\nerror: failed to solve: {message}\n"
            )
        };
        let vertex = |name: &str, message: &str| {
            format!(
                "------\n > {name}:\n------\nDockerfile:2\n--------------------\n   2 | >>> x\n--------------------\nerror: failed to solve: {message}\n"
            )
        };
        let cases: Vec<(String, FailureCode, &[&str])> = vec![
            (run("echo hi && exit 3", "exit code: 3"), BuildFailed, &["`echo hi && exit 3`", "line 2", "exit code 3"]),
            (run("nosuchcmd", "exit code: 127"), BuildFailed, &["`nosuchcmd`", "127", "not found"]),
            (run("make", "exit code: 137"), OutOfMemory, &["`make`", "line 2", "resources.memory"]),
            (run("make", "cannot allocate memory"), OutOfMemory, &["`make`", "resources.memory"]),
            (run("make", "signal: killed"), OutOfMemory, &["resources.memory"]),
            (
                "4mmm\" did not complete successfully: exit code: 2\n------\nerror: failed to solve: process \"/nope x\" did not complete successfully: exit code: 1\n".to_owned(),
                BuildFailed,
                &["`/nope x`", "exit code 1"],
            ),
            (
                "error: failed to solve: ResourceExhausted: process \"/bin/sh -c make\" did not complete successfully: cannot allocate memory".to_owned(),
                OutOfMemory,
                &["`make`"],
            ),
            (
                frontend(2, "dockerfile parse error on line 2: unknown instruction: FOO (did you mean FROM?)"),
                DockerfileInvalid,
                &["line 2", "unknown instruction: FOO (did you mean FROM?)"],
            ),
            (frontend(3, "LABEL must have two arguments"), DockerfileInvalid, &["line 3", "LABEL must have two arguments"]),
            (frontend(2, "unsupported mount type \"nope\""), DockerfileInvalid, &["line 2", "mount type"]),
            (frontend(1, "no build stage in current context"), DockerfileInvalid, &["no build stage"]),
            (
                "#1 DONE 0.0s\nerror: failed to solve: the Dockerfile cannot be empty\n".to_owned(),
                DockerfileInvalid,
                &["cannot be empty"],
            ),
            (
                "#1 DONE 0.0s\nerror: failed to solve: target stage \"nope\" could not be found\n".to_owned(),
                DockerfileInvalid,
                &["target stage \"nope\""],
            ),
            (
                "error: failed to solve: failed to read dockerfile: open sub/Dockerfile: no such file or directory\n".to_owned(),
                DockerfileInvalid,
                &["sub/Dockerfile"],
            ),
            (
                vertex("[2/2] COPY nothere /x", "failed to compute cache key: failed to calculate checksum of ref mec0::37wh: \"/nothere\": not found"),
                BuildFailed,
                &["`nothere`", "line 2", "build context"],
            ),
            (
                vertex("[2/2] ADD http://10.89.0.1:3999/x /x", "failed to load cache key: Get \"http://10.89.0.1:3999/x\": dial tcp 10.89.0.1:3999: connect: connection refused"),
                BuildFailed,
                &["http://10.89.0.1:3999/x", "connection refused"],
            ),
            (
                vertex("[internal] load metadata for docker.io/library/nothere:1", "nothere:1: failed to resolve source metadata for docker.io/library/nothere:1: docker.io/library/nothere:1: not found"),
                BuildFailed,
                &["base image `nothere:1`", "no such image"],
            ),
            (
                vertex("resolve image config for docker-image://docker.io/docker/dockerfile:1", "failed to resolve source metadata for docker.io/docker/dockerfile:1: docker.io/docker/dockerfile:1: not found"),
                BuildFailed,
                &["`docker.io/docker/dockerfile:1`", "`# syntax=` line", "no such image"],
            ),
            (
                vertex("[internal] load metadata for h:1/a/b:1", "h:1/a/b:1: failed to resolve source metadata for h:1/a/b:1: unexpected status from HEAD request to http://h:1/v2/a/b/manifests/1: 401 Unauthorized"),
                BuildFailed,
                &["base image `h:1/a/b:1`", "`h:1`", "credentials"],
            ),
            (
                vertex("[internal] load metadata for h.example/a:1", "DeadlineExceeded: h.example/a:1: failed to resolve source metadata for h.example/a:1: failed to do request: Head \"https://h.example/v2/a/manifests/1\": dial tcp: lookup h.example: i/o timeout"),
                BuildFailed,
                &["base image `h.example/a:1`", "can't be resolved"],
            ),
            (
                "------\n > exporting to image:\n------\nerror: failed to solve: failed to push 10.89.0.1:5001/team/app:1: unexpected status from HEAD request to http://10.89.0.1:5001/v2/team/app/blobs/sha256:6ad9f22fdd16e5927ad25d33cf183eafe3016fbc3ad8baca5801a33b7ceb338f: 401 Unauthorized\n".to_owned(),
                PushFailed,
                &["`10.89.0.1:5001/team/app:1`", "`10.89.0.1:5001` wants credentials"],
            ),
            (
                "error: failed to solve: failed to push 10.89.0.1:5999/team/app:1: failed to do request: Head \"https://10.89.0.1:5999/v2/team/app/blobs/sha256:9f\": dial tcp 10.89.0.1:5999: connect: connection refused\n".to_owned(),
                PushFailed,
                &["nothing answers at `10.89.0.1:5999`"],
            ),
            (
                "error: failed to receive status: rpc error: code = Unavailable desc = error reading from server: EOF\n".to_owned(),
                Internal,
                &["error reading from server"],
            ),
            (
                "error: failed to solve: failed to copy: write /home/user/x: no space left on device\n".to_owned(),
                Internal,
                &["no space left", "resources.disk"],
            ),
        ];
        for (tail, code, words) in cases {
            // What failed stands in the output of `--progress=plain`, from which these are.
            let failed = tail.split_once("\n > ").map(|(_, rest)| FailedStep {
                name: rest.lines().next().unwrap().trim_end_matches(':').to_owned(),
                error: tail.rsplit_once("failed to solve: ").unwrap().1.trim_end().to_owned(),
            });
            let failure = explain(&tail, failed.as_ref()).unwrap_or_else(|| panic!("unexplained: {tail}"));
            assert_eq!(failure.code, code, "{tail}\n{failure:?}");
            for word in words {
                assert!(failure.message.contains(word), "{word} is not in: {}", failure.message);
            }
        }
        assert_eq!(explain("#1 DONE 0.0s\n", None), None);
    }

    #[test]
    fn the_vertex_tells_what_a_cut_tail_does_not() {
        let error = format!(
            "process \"/bin/sh -c {}\" did not complete successfully: exit code: 9",
            "x".repeat(3000)
        );
        let tail = format!("error: failed to solve: {error}\n");
        let failed = FailedStep {
            name: "[2/2] RUN x".to_owned(),
            error: clip_middle(&error, 300),
        };
        for tail in [&tail[..], &tail[tail.len() - 1500..], ""] {
            let failure = explain(tail, Some(&failed)).unwrap();
            assert_eq!(failure.code, FailureCode::BuildFailed);
            assert!(failure.message.contains("exit code 9") && failure.message.contains("`xxx"));
        }
    }
}
