//! From a failed step's report to a failure that its owner can act on.

use std::path::Path;

use kiln_agent::wire::report::{Exit, Problem, ProblemKind, Report};

use super::{buildah, buildkit};
use crate::domain::{
    event::StepName,
    failure::{Failure, FailureCode},
};

/// What a step's failure means. The container's own end (killed for memory, evicted) is known elsewhere and comes
/// first; this goes by what the agent and the builder said.
pub fn classify(step: StepName, report: &Report) -> Failure {
    if let Some(Problem { kind, message }) = &report.problem {
        let code = match kind {
            ProblemKind::Source => FailureCode::SourceFailed,
            ProblemKind::Dockerfile => FailureCode::DockerfileInvalid,
            ProblemKind::Internal => FailureCode::Internal,
        };
        return Failure::new(code, message);
    }
    if report.exit == Exit::Stopped {
        return internal(&format!(
            "The {} step was told to stop before it was done.",
            step.as_str()
        ));
    }
    let explained = match step {
        StepName::Source => None,
        StepName::Build => {
            buildkit::explain(&report.tail, report.failed.as_ref()).or_else(|| buildah::explain(&report.tail))
        }
    };
    let mut failure = explained.unwrap_or_else(|| unexplained(step, report));
    if failure.code == FailureCode::BuildFailed && is_out_of_disk(&report.tail) {
        failure
            .message
            .push_str(" It says that the disk was full: ask for more in `resources.disk`.");
    }
    failure
}

/// The failure with paths in the source told from there: where a host keeps it is nobody's business.
pub fn relative_to(source: &Path, failure: &Failure) -> Failure {
    let source = source.to_string_lossy();
    let message = failure
        .message
        .replace(&format!("{source}/"), "")
        .replace(&*source, ".");
    Failure::new(failure.code, message)
}

/// What buildah says at the end of any build with arguments that the Dockerfile doesn't declare; it fails none.
const NOISE: &str = "[Warning] one or more build args were not consumed";

/// A failure by its exit alone, with the last thing that was said.
fn unexplained(step: StepName, report: &Report) -> Failure {
    let mut lines = report.tail.lines().rev();
    let said = match lines.find(|line| !line.trim().is_empty() && !line.starts_with(NOISE)) {
        Some(line) => format!(" Its last line: {}", clip(line.trim())),
        None => String::new(),
    };
    let step_name = step.as_str();
    match (report.exit, step) {
        // 137 is 128 + SIGKILL.
        (Exit::Signal(9) | Exit::Code(137), _) => out_of_memory(&format!("The {step_name} step was killed")),
        (Exit::Code(code), StepName::Source) => Failure::new(
            FailureCode::SourceFailed,
            format!("Fetching the source ended with exit code {code}.{said}"),
        ),
        (Exit::Code(code), StepName::Build) => internal(&format!(
            "The builder ended with exit code {code} and gave no reason.{said}"
        )),
        (Exit::Signal(signal), _) => internal(&format!("The {step_name} step was ended by signal {signal}.{said}")),
        (Exit::Stopped, _) => internal(&format!("The {step_name} step was stopped.{said}")),
    }
}

/// Why a registry didn't do what it was asked, as far as its client's words tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::runner) enum Cause {
    Unauthorized,
    Forbidden,
    NotFound,
    NameInvalid,
    ReadOnly,
    Refused,
    UnknownHost,
    Tls,
    Timeout,
    Other(String),
}

impl Cause {
    /// Reads the words of the clients in BuildKit (containerd), buildah (containers/image) and Go's net packages.
    /// Goes by words, not by status numbers: digests are full of numbers.
    pub(in crate::runner) fn of(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|&word| lower.contains(word));
        if says(&["unauthorized", "authentication required", "no basic auth credentials"]) {
            Self::Unauthorized
        } else if says(&["forbidden", "denied", "insufficient_scope"]) {
            Self::Forbidden
        } else if says(&["name invalid", "name_invalid", "invalid repository name"]) {
            Self::NameInvalid
        } else if says(&["operation is unsupported", "method not allowed"]) {
            Self::ReadOnly
        } else if says(&["no such host", "dial tcp: lookup ", "server misbehaving"]) {
            Self::UnknownHost
        } else if says(&["connection refused", "no route to host", "network is unreachable"]) {
            Self::Refused
        } else if says(&[
            "x509:",
            "tls:",
            "server gave http response to https client",
            "certificate",
        ]) {
            Self::Tls
        } else if says(&[
            "not found",
            "name unknown",
            "name_unknown",
            "not known to registry",
            "manifest unknown",
        ]) {
            Self::NotFound
        } else if says(&["timeout", "deadline exceeded", "timed out"]) {
            Self::Timeout
        } else {
            Self::Other(clip(text.trim()))
        }
    }
}

/// The registry didn't take `image`.
pub(in crate::runner) fn push_failed(image: &str, cause: Cause) -> Failure {
    let registry = registry_of(image);
    let why = match cause {
        Cause::Unauthorized => format!(
            "`{registry}` wants credentials and got none, or wrong ones. Name a secret with an account that may write there in `registry_credentials`."
        ),
        Cause::Forbidden => format!(
            "`{registry}` doesn't let these credentials write there. Check the repository's name and who may push to it."
        ),
        Cause::NotFound => {
            format!("`{registry}` doesn't know that repository. Create it first, or correct the image's name.")
        }
        Cause::NameInvalid => {
            format!("`{registry}` doesn't take that repository name. Correct the image's name to what it allows.")
        }
        Cause::ReadOnly => format!(
            "`{registry}` takes no images at the moment, or not at that address. Ask whoever runs it whether it is in maintenance."
        ),
        Cause::Refused => format!("nothing answers at `{registry}`. Check the registry's name and port."),
        Cause::UnknownHost => {
            format!("the name of `{registry}` can't be resolved where the build runs. Check the registry's name.")
        }
        Cause::Tls => format!(
            "no trusted TLS connection to `{registry}` could be made. If its certificate is signed by an authority of its own, the operator can name that by `ca_file`; if it speaks plain HTTP, by `insecure = true`."
        ),
        Cause::Timeout => {
            format!("`{registry}` took too long to answer. Try again; if it stays so, check the registry.")
        }
        Cause::Other(text) => text,
    };
    Failure::new(FailureCode::PushFailed, format!("Pushing `{image}` failed: {why}"))
}

/// An image that the Dockerfile begins from, or copies from, can't be had.
pub(super) fn base_image(image: &str, cause: Cause) -> Failure {
    let why = pull_refused(image, cause);
    Failure::new(
        FailureCode::BuildFailed,
        format!("The base image `{image}` could not be pulled: {why}"),
    )
}

/// The image that is to read the Dockerfile can't be had.
pub(super) fn frontend_image(image: &str, cause: Cause) -> Failure {
    let why = pull_refused(image, cause);
    Failure::new(
        FailureCode::BuildFailed,
        format!(
            "The image `{image}`, which the Dockerfile's `# syntax=` line asks for, could not be pulled: {why} Without that line the builder reads the Dockerfile by itself."
        ),
    )
}

fn pull_refused(image: &str, cause: Cause) -> String {
    let registry = registry_of(image);
    match cause {
        Cause::Unauthorized | Cause::Forbidden => {
            format!(
                "`{registry}` doesn't give it without credentials that may read it. Name a secret with such an account in `registry_credentials`."
            )
        }
        Cause::NotFound | Cause::NameInvalid => "there is no such image. Check its name and tag.".to_owned(),
        Cause::ReadOnly => format!("`{registry}` isn't a registry that images can be pulled from. Check its name."),
        Cause::Refused => format!("nothing answers at `{registry}`. Check the registry's name and port."),
        Cause::UnknownHost => format!(
            "the name of `{registry}` can't be resolved where the build runs. Check it; in a closed network, the operator can set a mirror."
        ),
        Cause::Tls => format!(
            "no trusted TLS connection to `{registry}` could be made. If its certificate is signed by an authority of its own, the operator can name that by `ca_file`; if it speaks plain HTTP, by `insecure = true`."
        ),
        Cause::Timeout => {
            format!("`{registry}` took too long to answer. Try again; if it stays so, check the registry.")
        }
        Cause::Other(text) => text,
    }
}

/// Host part of an image name; a name without one means Docker Hub.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// A command of the Dockerfile failed. `exit` is `exit code: N`, `exit status N` or something else, such as
/// `signal: killed`.
pub(super) fn command_failed(command: &str, line: Option<u32>, exit: &str) -> Failure {
    let exit = exit.trim();
    let code = exit
        .strip_prefix("exit code: ")
        .or_else(|| exit.strip_prefix("exit status "))
        .and_then(|code| code.split_whitespace().next()?.parse::<i32>().ok());
    let what = match command.trim() {
        "" => "A command".to_owned(),
        command => format!("The command `{}`", clip(command)),
    };
    let place = place(line);
    match code {
        Some(137) => out_of_memory(&format!("{what}{place} was killed")),
        None if is_out_of_memory(exit) => out_of_memory(&format!("{what}{place} was killed")),
        Some(code) => {
            let hint = match code {
                126 => " (a program could not be executed)",
                127 => " (a program was not found)",
                _ => "",
            };
            Failure::new(
                FailureCode::BuildFailed,
                format!("{what}{place} failed with exit code {code}{hint}. Its output is in the log."),
            )
        }
        None => Failure::new(
            FailureCode::BuildFailed,
            format!("{what}{place} failed: {}. Its output is in the log.", clip(exit)),
        ),
    }
}

/// A file that the Dockerfile copies isn't there.
pub(super) fn missing_in_context(path: &str, line: Option<u32>) -> Failure {
    Failure::new(
        FailureCode::BuildFailed,
        format!(
            "`{}` is copied{} but isn't in the build context. Check the path, `subdir` and `.dockerignore`.",
            clip(path),
            place(line)
        ),
    )
}

/// Something else in the Dockerfile failed while it was carried out.
pub(super) fn build_failed(message: &str, line: Option<u32>) -> Failure {
    Failure::new(
        FailureCode::BuildFailed,
        format!("The build failed{}: {}", place(line), clip(message)),
    )
}

/// The Dockerfile can't be carried out as it is.
pub(super) fn dockerfile_invalid(message: &str, line: Option<u32>) -> Failure {
    Failure::new(
        FailureCode::DockerfileInvalid,
        format!("The Dockerfile is not valid{}: {}", place(line), clip(message)),
    )
}

/// The build was killed for memory; `what` says what was seen.
pub(in crate::runner) fn out_of_memory(what: &str) -> Failure {
    Failure::new(
        FailureCode::OutOfMemory,
        format!(
            "{what}, most likely because the build used more memory than it may. Ask for more in `resources.memory`."
        ),
    )
}

/// The disk is full.
pub(super) fn out_of_disk() -> Failure {
    internal(
        "The builder found no space left on the disk of its node. Ask for more in `resources.disk`, so that a node with more room is chosen.",
    )
}

/// A failure that isn't the user's.
pub(super) fn internal(message: &str) -> Failure {
    Failure::new(FailureCode::Internal, clip(message))
}

pub(super) fn is_out_of_memory(text: &str) -> bool {
    ["ResourceExhausted", "cannot allocate memory", "signal: killed"]
        .iter()
        .any(|sign| text.contains(sign))
}

pub(super) fn is_out_of_disk(text: &str) -> bool {
    // As Go and as the C library put it.
    text.contains("no space left on device") || text.contains("No space left on device")
}

/// The last line that begins with `start`: where it stands, and the rest of it.
pub(super) fn last_line_after<'a>(text: &'a str, start: &str) -> Option<(usize, &'a str)> {
    let mut end = text.len();
    text.split_inclusive('\n').rev().find_map(|line| {
        end -= line.len();
        Some((end, line.strip_prefix(start)?.trim_end()))
    })
}

fn place(line: Option<u32>) -> String {
    line.map_or_else(String::new, |line| format!(" (Dockerfile line {line})"))
}

/// Cuts what others said to a length that still reads.
fn clip(text: &str) -> String {
    const MAX: usize = 600;
    if text.len() <= MAX {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(MAX)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report(exit: Exit, tail: &str) -> Report {
        Report {
            exit,
            lines: 1,
            bytes: 1,
            commit: None,
            digest: None,
            problem: None,
            failed: None,
            tail: tail.to_owned(),
        }
    }

    #[test]
    fn the_agents_word_comes_first() {
        for (kind, code) in [
            (ProblemKind::Source, FailureCode::SourceFailed),
            (ProblemKind::Dockerfile, FailureCode::DockerfileInvalid),
            (ProblemKind::Internal, FailureCode::Internal),
        ] {
            let mut report = report(
                Exit::Code(1),
                "error: failed to solve: no build stage in current context",
            );
            report.problem = Some(Problem {
                kind,
                message: "as said".to_owned(),
            });
            let failure = classify(StepName::Source, &report);
            assert_eq!((failure.code, failure.message.as_str()), (code, "as said"));
        }
    }

    #[test]
    fn paths_are_told_from_the_source() {
        let said = |message: &str| {
            let failure = Failure::new(FailureCode::DockerfileInvalid, message);
            relative_to(Path::new("/var/kiln/b1/source"), &failure).message
        };
        assert_eq!(
            said("stat /var/kiln/b1/source/app/Dockerfile: it is gone"),
            "stat app/Dockerfile: it is gone"
        );
        assert_eq!(
            said("checking on sources under \"/var/kiln/b1/source\": why"),
            "checking on sources under \".\": why"
        );
        assert_eq!(said("elsewhere /var/kiln/x"), "elsewhere /var/kiln/x");
    }

    #[test]
    fn what_is_only_a_warning_explains_nothing() {
        let tail = "the reason\n[Warning] one or more build args were not consumed: [FOO]\n";
        let failure = classify(StepName::Build, &report(Exit::Code(1), tail));
        assert!(failure.message.ends_with("Its last line: the reason"), "{failure:?}");
    }

    #[test]
    fn what_nobody_explains_goes_by_the_exit() {
        let cases = [
            (StepName::Source, Exit::Code(128), FailureCode::SourceFailed),
            (StepName::Source, Exit::Signal(9), FailureCode::OutOfMemory),
            (StepName::Build, Exit::Code(137), FailureCode::OutOfMemory),
            (StepName::Build, Exit::Code(1), FailureCode::Internal),
            (StepName::Build, Exit::Signal(15), FailureCode::Internal),
            (StepName::Build, Exit::Stopped, FailureCode::Internal),
        ];
        for (step, exit, code) in cases {
            let failure = classify(step, &report(exit, "some words\n\n"));
            assert_eq!(failure.code, code, "{step:?} {exit:?}: {failure:?}");
        }
        let failure = classify(StepName::Source, &report(Exit::Code(128), "fatal: some words\n\n"));
        assert!(failure.message.contains("128") && failure.message.contains("fatal: some words"));
    }

    proptest! {
        /// Tails are cut anywhere, and commands print what they like, errors of builders included.
        #[test]
        fn whatever_was_said_there_is_a_failure_with_a_message(
            words in prop::collection::vec(
                prop_oneof![
                    "(?s).{0,40}",
                    prop::sample::select(vec![
                        "error: ", "failed to solve: ", "Error: ", "building at STEP \"", "\": ", "\n", ": FROM ",
                        "process \"", "\" did not complete successfully: ", "exit code: ", "pushing ", "\"docker://",
                        "deleting build container ", "(Mirrors also failed: [", "]): ", "--------------------\n",
                        ": failed to resolve source metadata for ", "STEP 1/2", "\" &imagebuilder", "copier: stat: \"",
                    ]).prop_map(str::to_owned),
                ],
                0..12,
            ),
            code in -1_i32..256,
        ) {
            let failure = classify(StepName::Build, &report(Exit::Code(code), &words.concat()));
            prop_assert!(!failure.message.is_empty());
            prop_assert!(failure.message.len() <= Failure::MAX_MESSAGE);
        }
    }

    #[test]
    fn a_full_disk_is_mentioned_where_a_command_met_it() {
        let full = "dd: error writing '/big': No space left on device\nError: building at STEP \"RUN dd of=/big\": exit status 1\n";
        let failure = classify(StepName::Build, &report(Exit::Code(1), full));
        assert_eq!(failure.code, FailureCode::BuildFailed);
        assert!(failure.message.contains("resources.disk"), "{failure:?}");
        let other = "Error: building at STEP \"RUN dd of=/big\": exit status 1\n";
        let failure = classify(StepName::Build, &report(Exit::Code(1), other));
        assert!(!failure.message.contains("disk"), "{failure:?}");
    }

    #[test]
    fn registries_speak_in_many_tongues() {
        let cases = [
            (
                "unexpected status from HEAD request to http://h/v2/a/blobs/sha256:404403: 401 Unauthorized",
                Cause::Unauthorized,
            ),
            (
                "checking whether a blob sha256:e exists in h/a: unauthorized: authentication required",
                Cause::Unauthorized,
            ),
            (
                "failed to read from destination repository team/app: 403 (Forbidden)",
                Cause::Forbidden,
            ),
            (
                "push access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
                Cause::Forbidden,
            ),
            (
                "initiating layer upload to /v2/a/blobs/uploads/ in h: name unknown: repository name not known to registry",
                Cause::NotFound,
            ),
            (
                "unexpected status from POST request to https://h/v2/a/blobs/uploads/: 404 Not Found",
                Cause::NotFound,
            ),
            (
                "failed to do request: Head \"https://h/v2/a\": dial tcp 10.89.0.1:5999: connect: connection refused",
                Cause::Refused,
            ),
            (
                "failed to do request: Head \"https://h/v2/a\": dial tcp: lookup h: i/o timeout",
                Cause::UnknownHost,
            ),
            (
                "pinging container registry h: Get \"https://h/v2/\": dial tcp: lookup h on 10.255.255.53:53: no such host",
                Cause::UnknownHost,
            ),
            (
                "tls: failed to verify certificate: x509: certificate signed by unknown authority",
                Cause::Tls,
            ),
            ("http: server gave HTTP response to HTTPS client", Cause::Tls),
            // BuildKit knows few of the registries' error codes; buildah knows them all.
            ("denied: requested access to the resource is denied", Cause::Forbidden),
            ("unknown: repository name not known to registry", Cause::NotFound),
            ("unknown: invalid repository name", Cause::NameInvalid),
            (
                "writing blob: initiating layer upload to /v2/a/blobs/uploads/ in h: name invalid: invalid repository name",
                Cause::NameInvalid,
            ),
            (
                "unexpected status from POST request to http://h/v2/a/blobs/uploads/: 405 Method Not Allowed: Method not allowed",
                Cause::ReadOnly,
            ),
            (
                "writing blob: initiating layer upload to /v2/a/blobs/uploads/ in h: StatusCode: 405, Method not allowed\n",
                Cause::ReadOnly,
            ),
            (
                "net/http: request canceled (Client.Timeout exceeded while awaiting headers)",
                Cause::Timeout,
            ),
            (
                "500 Internal Server Error",
                Cause::Other("500 Internal Server Error".to_owned()),
            ),
        ];
        for (text, cause) in cases {
            assert_eq!(Cause::of(text), cause, "{text}");
        }
    }

    #[test]
    fn the_registry_of_a_name() {
        for (image, registry) in [
            ("registry.example/team/app:1", "registry.example"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000"),
            ("localhost/app", "localhost"),
            ("team/app", "docker.io"),
            ("debian:bookworm", "docker.io"),
        ] {
            assert_eq!(registry_of(image), registry);
        }
    }

    #[test]
    fn lines_are_found_from_the_end() {
        assert_eq!(last_line_after("error: a\nx\nerror: b\ny", "error: "), Some((11, "b")));
        assert_eq!(last_line_after("no error: here", "error: "), None);
    }

    #[test]
    fn what_others_say_is_cut() {
        let failure = build_failed(&"é".repeat(5000), Some(3));
        assert!(failure.message.len() < 700 && failure.message.ends_with('…'));
    }
}
