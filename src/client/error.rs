//! What can go wrong between a person and the service, in words that say how to go on, and the exit codes for it.

use std::{error::Error as _, io, path::PathBuf};

use url::Url;

use super::{context::ContextError, problem::Problem};
use crate::domain::state::StateName;

/// Exit codes. `docs/cli.md` lists them; scripts depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The build succeeded, or the command did what it is for.
    Success = 0,
    /// The build failed.
    Failed = 1,
    /// The command line, a local file or the request isn't valid.
    Usage = 2,
    /// The build was cancelled.
    Cancelled = 3,
    /// No token, or one that doesn't allow this.
    Denied = 4,
    /// The service can't be reached, or failed.
    Unavailable = 5,
    /// The service refused: there is no such thing, or its state doesn't allow this.
    Refused = 6,
    /// Interrupted: the build, if there is one, goes on.
    Interrupted = 130,
    /// Nobody reads the output any more.
    BrokenPipe = 141,
}

impl Exit {
    /// Every code.
    pub const ALL: [Self; 9] = [
        Self::Success,
        Self::Failed,
        Self::Usage,
        Self::Cancelled,
        Self::Denied,
        Self::Unavailable,
        Self::Refused,
        Self::Interrupted,
        Self::BrokenPipe,
    ];

    /// How a build's end is told.
    pub(super) const fn of(state: StateName) -> Self {
        match state {
            StateName::Succeeded => Self::Success,
            StateName::Cancelled => Self::Cancelled,
            StateName::Failed
            | StateName::Queued
            | StateName::Starting
            | StateName::Running
            | StateName::Cancelling => Self::Failed,
        }
    }
}

/// Something that is wrong with a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The flag, and what was given to it.
    pub(super) flag: String,
    pub(super) detail: String,
}

fn lines(mistakes: &[Mistake]) -> String {
    let line = |Mistake { flag, detail }: &Mistake| format!("\n  {flag}: {detail}");
    mistakes.iter().map(line).collect()
}

/// Why a command could not do what it is for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The command line or a local file can't be used.
    #[error("{0}")]
    Usage(String),
    /// Flags or what they name can't be used.
    #[error("the command is not valid{}", lines(.0))]
    Invalid(Vec<Mistake>),
    /// A folder can't be sent.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// Nothing says which token to use.
    #[error("no token for {url}\n{}", login_help(config.as_ref()))]
    NoToken { url: Url, config: Option<PathBuf> },
    /// The service can't be reached.
    #[error("{url} can't be reached: {}{}", cause(source), hint(url, source))]
    Unreachable { url: Url, source: reqwest::Error },
    /// The service was reached, but not for long enough.
    #[error("the connection to {url} is gone{}", .instead.as_deref().map(|text| format!(": {text}")).unwrap_or_default())]
    Lost { url: Url, instead: Option<String> },
    /// The service was away when a build was to be cancelled.
    #[error("{source}\n  The build is not cancelled, and goes on. Once the service is there again: kiln cancel {id}")]
    NotCancelled { id: String, source: Box<ClientError> },
    /// The service refused.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// There is no such thing.
    #[error("{0}")]
    Unknown(String),
    /// What answers isn't Kiln.
    #[error("{url} answers, but not as Kiln does ({what}): is the address right, and no proxy in between?")]
    NotKiln { url: Url, what: String },
    /// Standard output or error can't be written to.
    #[error("can't write: {0}")]
    Output(#[from] io::Error),
}

impl ClientError {
    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    pub(super) fn file(path: &std::path::Path, source: &io::Error) -> Self {
        Self::Usage(format!("can't read {}: {source}", path.display()))
    }

    /// Whether it may be different the next time: the service is away, or what stands in front of it answers for it.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Problem(problem) => problem.status >= 500 || matches!(problem.status, 408 | 429),
            Self::Unreachable { .. } | Self::Lost { .. } | Self::NotKiln { .. } => true,
            _ => false,
        }
    }

    /// The exit code for it.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Invalid(_) | Self::Context(_) => Exit::Usage,
            Self::NoToken { .. } => Exit::Denied,
            Self::Unknown(_) => Exit::Refused,
            Self::Unreachable { .. } | Self::Lost { .. } | Self::NotKiln { .. } => Exit::Unavailable,
            Self::NotCancelled { source, .. } => source.exit(),
            Self::Problem(problem) => match problem.status {
                401 | 403 => Exit::Denied,
                400 | 413 | 415 | 422 => Exit::Usage,
                500.. | 408 | 429 => Exit::Unavailable,
                _ => Exit::Refused,
            },
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::BrokenPipe,
            Self::Output(_) => Exit::Failed,
        }
    }
}

fn login_help(config: Option<&PathBuf>) -> String {
    let file = match config {
        Some(path) => path.display().to_string(),
        None => "~/.config/kiln/config.toml".to_owned(),
    };
    format!(
        "  Set one for this shell:      export KILN_URL=https://kiln.example KILN_TOKEN=kiln_…\n  \
         or for all shells, in a file that only you can read ({file}):\n    \
         url = \"https://kiln.example\"\n    token = \"kiln_…\"\n  \
         `make run` and `kiln dev` print a token; your project's administrator makes others (kiln token create --api)."
    )
}

/// The innermost reason: what reqwest says around it names only the address, which stands in front already.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}

fn hint(url: &Url, error: &reqwest::Error) -> String {
    let mut source = error.source();
    let mut refused = false;
    while let Some(inner) = source {
        let kind = inner.downcast_ref::<io::Error>().map(io::Error::kind);
        refused |= kind == Some(io::ErrorKind::ConnectionRefused);
        source = inner.source();
    }
    let loopback = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    match (refused, loopback) {
        (true, true) => "\n  Nothing listens there: is `make run`, `kiln dev` or `kiln serve` running?".to_owned(),
        (true, false) => "\n  Nothing listens there: is the address right (--url, KILN_URL)?".to_owned(),
        (false, _) if error.is_connect() => "\n  Is the address right (--url, KILN_URL)?".to_owned(),
        (false, _) => String::new(),
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
