//! What a pod is to do: fetch the source, then run the builder. Every value the user gave is one argument of an
//! argument vector or one field here; nothing passes through a shell.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::archive::Limits;

/// The work of one attempt. Both steps read the same document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The first step: put the source into a folder.
    pub source: SourcePlan,
    /// The second step: make and push the image.
    pub build: RunPlan,
}

/// How to fill the source folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcePlan {
    /// Absolute path of the folder to fill; it exists and is empty, or is made.
    pub into: PathBuf,
    /// Where the source comes from.
    pub from: SourceKind,
    /// Build context, relative to `into`; empty for `into` itself.
    pub subdir: String,
    /// Dockerfile, relative to the context or, with a `/` in front, to `into`. The step fails when it isn't there.
    pub dockerfile: String,
    /// Variables to render the Dockerfile with, as a Jinja template; it stays as it is when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<BTreeMap<String, serde_json::Value>>,
    /// Absolute paths of files whose content must not show in the step's output, in any form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mask: Vec<PathBuf>,
}

/// Where a source comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceKind {
    /// A git repository.
    Git {
        /// `http(s)` or `ssh` URL.
        url: String,
        /// Branch, tag or full ref name; the remote's HEAD when neither this nor `commit` is given.
        reference: Option<String>,
        /// Full commit id; wins over `reference`.
        commit: Option<String>,
        /// Whether to fetch submodules too.
        submodules: bool,
        /// What opens the repository, and its submodules on the same host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        credentials: Option<SourceCredentials>,
    },
    /// Files that came with the request.
    Inline {
        /// Relative path → content in standard base64.
        files: BTreeMap<String, String>,
    },
    /// An archive on a web server.
    Archive {
        /// `http(s)` URL.
        url: String,
        /// SHA-256 of the file in hexadecimal digits.
        sha256: String,
        /// How much it may hold.
        limits: Limits,
    },
    /// An archive that the service keeps.
    Upload {
        /// `http(s)` URL. The answer tells the SHA-256 of the file in `repr-digest` (RFC 9530).
        url: String,
        /// File that holds the bearer token for it.
        token: PathBuf,
        /// How much it may hold.
        limits: Limits,
    },
}

/// Files with what opens a source. Nothing secret stands in the plan itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceCredentials {
    /// For http and https. The files hold one line each, without a line end.
    Password {
        /// Absolute path of the user's name.
        username: PathBuf,
        /// Absolute path of the password or token.
        password: PathBuf,
    },
    /// For ssh.
    Ssh {
        /// Absolute path of the private key.
        key: PathBuf,
        /// Absolute path of the host keys to trust, in the form of `known_hosts`.
        known_hosts: PathBuf,
    },
}

/// How to run a builder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunPlan {
    /// Folders to make first, for their owner only and without the setgid bit: Kubernetes puts it on volumes, and
    /// what builders make below would hand it on into images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<PathBuf>,
    /// Files to write first, such as the builder's own configuration; missing folders are made.
    pub files: Vec<File>,
    /// Environment added to what the container has, for the service and the commands.
    pub env: BTreeMap<String, String>,
    /// A daemon that the commands talk to; stopped when they are done.
    pub service: Option<Service>,
    /// Run one after the other; the first that fails ends the step.
    pub commands: Vec<Command>,
    /// Where the image's digest is to be read from after the last command.
    pub digest: Option<DigestFile>,
    /// Absolute paths of files whose content must not show in the step's output, in any form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mask: Vec<PathBuf>,
    /// How long processes get between SIGTERM and SIGKILL when the step is told to stop.
    pub grace_seconds: u32,
}

/// A file to write before anything runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute path.
    pub path: PathBuf,
    /// Content.
    pub content: String,
}

/// An argument vector; the first element is the program, looked up in `PATH` when it holds no slash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// How the command tells what it is doing; without it, its output is only text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What to do where it fails for a reason that is no reason to give up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<Otherwise>,
}

/// The way on after a command that has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Otherwise {
    /// Only when the last line of its output begins with these words.
    pub said: String,
    /// What the log is told.
    pub remark: String,
    /// Program and arguments to run instead.
    pub argv: Vec<String>,
}

/// The ways in which builders tell about their steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// `buildctl --progress=rawjson`: JSON lines on stderr, out of which the log is made.
    BuildkitJson,
    /// `buildah build`: lines such as `STEP 1/2: FROM x` on stdout.
    Buildah,
}

/// A daemon and the sign that it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Unix socket that accepts connections once the daemon is ready.
    pub socket: PathBuf,
    /// How long it may take to become ready.
    pub ready_seconds: u32,
}

/// Where a builder leaves the digest of what it made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
pub enum DigestFile {
    /// A JSON file and the pointer (RFC 6901) of the digest in it: BuildKit's `--metadata-file`.
    Json {
        /// Absolute path.
        path: PathBuf,
        /// JSON pointer.
        pointer: String,
    },
    /// A file that holds just the digest: buildah's `--digestfile`.
    Text {
        /// Absolute path.
        path: PathBuf,
    },
}
