//! Why git could not get something, told from what it printed. git has exit status 128 for all of it, so its messages
//! are all there is to go by; they are asked for in English.

use super::Request;

/// Why git could not get something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) cause: Cause,
    /// git's own words: the line that told the cause, or the last one.
    pub(super) line: String,
}

/// The causes that ask for different actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    RepositoryNotFound,
    AuthenticationRequired,
    HostKeyUnknown,
    CertificateRefused,
    HostNotFound,
    Unreachable,
    Timeout,
    ConnectionLost,
    ServerError,
    NotARepository,
    ProtocolRefused,
    UnknownRef,
    CommitMissing,
    CommitNotOffered,
    ObjectFormat,
    DiskFull,
    Other,
}

/// What tells a cause, in the order in which it counts: what is specific comes before what git adds to any failure.
/// Compared in lower case; a line tells the cause when it holds all the parts.
const SIGNS: &[(Cause, &[&str])] = &[
    (Cause::DiskFull, &["no space left on device"]),
    (Cause::DiskFull, &["disk quota exceeded"]),
    (Cause::ObjectFormat, &["mismatched algorithms"]),
    (Cause::ObjectFormat, &["unexpected object format"]),
    (
        Cause::CommitNotOffered,
        &["does not allow request for unadvertised object"],
    ),
    (Cause::CommitNotOffered, &["want ", " not valid"]),
    (Cause::CommitMissing, &["not our ref"]),
    (
        Cause::CommitMissing,
        &["did not contain", "direct fetching of that commit failed"],
    ),
    (
        Cause::CommitMissing,
        &["unable to find current revision in submodule path"],
    ),
    (Cause::CommitMissing, &["no such remote ref"]),
    (Cause::UnknownRef, &["couldn't find remote ref"]),
    (Cause::UnknownRef, &["could not find remote ref"]),
    (Cause::HostKeyUnknown, &["host key verification failed"]),
    (Cause::AuthenticationRequired, &["could not read username"]),
    (Cause::AuthenticationRequired, &["could not read password"]),
    (Cause::AuthenticationRequired, &["authentication failed"]),
    (Cause::AuthenticationRequired, &["access denied"]),
    (Cause::AuthenticationRequired, &["permission denied ("]),
    (Cause::AuthenticationRequired, &["returned error: 401"]),
    (Cause::AuthenticationRequired, &["returned error: 403"]),
    (Cause::RepositoryNotFound, &["repository", "not found"]),
    (Cause::RepositoryNotFound, &["returned error: 404"]),
    (Cause::RepositoryNotFound, &["returned error: 410"]),
    (Cause::RepositoryNotFound, &["does not appear to be a git repository"]),
    (
        Cause::RepositoryNotFound,
        &["project you were looking for could not be found"],
    ),
    (Cause::HostNotFound, &["could not resolve"]),
    (Cause::HostNotFound, &["name or service not known"]),
    (Cause::HostNotFound, &["temporary failure in name resolution"]),
    (Cause::CertificateRefused, &["certificate"]),
    (Cause::CertificateRefused, &["ssl_error"]),
    (Cause::Timeout, &["timed out"]),
    (Cause::Timeout, &["timeout was reached"]),
    (Cause::Timeout, &["operation too slow"]),
    (Cause::Timeout, &["returned error: 408"]),
    (Cause::Timeout, &["returned error: 504"]),
    (Cause::ServerError, &["returned error: 429"]),
    (Cause::ServerError, &["returned error: 5"]),
    (Cause::ServerError, &["rpc failed; http 5"]),
    (Cause::Unreachable, &["connection refused"]),
    (Cause::Unreachable, &["no route to host"]),
    (Cause::Unreachable, &["network is unreachable"]),
    (Cause::Unreachable, &["failed to connect to"]),
    (Cause::Unreachable, &["couldn't connect to server"]),
    (Cause::ConnectionLost, &["connection reset"]),
    (Cause::ConnectionLost, &["connection closed by"]),
    (Cause::ConnectionLost, &["broken pipe"]),
    (Cause::ConnectionLost, &["recv failure"]),
    (Cause::ConnectionLost, &["send failure"]),
    (Cause::ConnectionLost, &["recv error"]),
    (Cause::ConnectionLost, &["empty reply from server"]),
    (Cause::ConnectionLost, &["transfer closed"]),
    (Cause::ConnectionLost, &["unexpected disconnect"]),
    (Cause::ConnectionLost, &["unexpected eof"]),
    (Cause::ConnectionLost, &["early eof"]),
    (Cause::ConnectionLost, &["invalid index-pack output"]),
    (Cause::ConnectionLost, &["rpc failed; curl"]),
    (Cause::ProtocolRefused, &["transport '", "not allowed"]),
    (Cause::ProtocolRefused, &["unable to find remote helper"]),
    (Cause::NotARepository, &["not valid: is this a git repository"]),
    (
        Cause::NotARepository,
        &["not valid: could not determine hash algorithm"],
    ),
    (Cause::NotARepository, &["invalid server response"]),
    (Cause::NotARepository, &["protocol error: "]),
    (Cause::NotARepository, &["dumb http transport"]),
    (Cause::ConnectionLost, &["the remote end hung up"]),
    (Cause::ConnectionLost, &["could not read from remote repository"]),
];

impl Cause {
    /// Whether the same command may succeed a moment later.
    pub(super) const fn may_pass(self) -> bool {
        matches!(
            self,
            Self::HostNotFound | Self::Unreachable | Self::Timeout | Self::ConnectionLost | Self::ServerError
        )
    }
}

impl Refusal {
    /// Judges by what a fetch printed on its standard error.
    pub(super) fn of_fetch(stderr: &str) -> Self {
        for (cause, parts) in SIGNS {
            let told = stderr.lines().find(|line| {
                let line = line.to_lowercase();
                parts.iter().all(|part| line.contains(part))
            });
            if let Some(line) = told {
                return Self {
                    cause: *cause,
                    line: line.trim().to_owned(),
                };
            }
        }
        Self {
            cause: Cause::Other,
            line: last_words(stderr),
        }
    }

    /// Judges by what fetching submodules printed. There a missing ref means a branch named in `.gitmodules`, and what
    /// a server doesn't offer by id is as good as missing.
    pub(super) fn of_submodules(stderr: &str) -> Self {
        let refusal = Self::of_fetch(stderr);
        match refusal.cause {
            Cause::CommitNotOffered => Self {
                cause: Cause::CommitMissing,
                ..refusal
            },
            _ => refusal,
        }
    }

    /// The whole history was searched in vain.
    pub(super) const fn missing_commit() -> Self {
        Self {
            cause: Cause::CommitMissing,
            line: String::new(),
        }
    }

    /// No name was worth a try.
    pub(super) const fn missing_ref() -> Self {
        Self {
            cause: Cause::UnknownRef,
            line: String::new(),
        }
    }

    /// What to tell whoever asked for the build.
    pub(super) fn message(&self, request: &Request<'_>) -> String {
        let url = request.url;
        let said = self.said();
        match self.cause {
            Cause::RepositoryNotFound => format!(
                "There is no repository at {url}, or it is hidden from who isn't logged in; check `source.url`{said}"
            ),
            Cause::AuthenticationRequired => format!(
                "{url} wants a login or refuses access; check `source.url`, or make the repository readable for this service{said}"
            ),
            Cause::HostKeyUnknown => format!(
                "The ssh host key of {url} is not known here; use the repository's https URL in `source.url`{said}"
            ),
            Cause::CertificateRefused => format!(
                "The TLS certificate of {url} was not accepted; have the server's certificate fixed, or its authority trusted by this service{said}"
            ),
            Cause::HostNotFound => {
                format!("The host of {url} is not known; check `source.url` for a typing error{said}")
            }
            Cause::Unreachable => {
                format!(
                    "The host of {url} can't be reached; check host and port in `source.url`, and that the server is up{said}"
                )
            }
            Cause::Timeout => format!("{url} did not answer in time; try again later{said}"),
            Cause::ConnectionLost => format!("The connection to {url} broke off; try again later{said}"),
            Cause::ServerError => format!("The server of {url} reported an error of its own; try again later{said}"),
            Cause::NotARepository => {
                format!("What answers at {url} is not a git repository; check `source.url`{said}")
            }
            Cause::ProtocolRefused => format!("{url} leads to a protocol other than http, https or ssh{said}"),
            Cause::UnknownRef => match request.reference {
                Some(name) => format!("`source.ref`: there is no branch or tag `{name}` in {url}{said}"),
                None => format!("{url} has no default branch: push a commit, or name a branch in `source.ref`{said}"),
            },
            Cause::CommitMissing | Cause::CommitNotOffered => format!(
                "`source.commit`: commit {} is not in {url}; push it, or check the id{said}",
                request.commit.unwrap_or_default()
            ),
            Cause::DiskFull => {
                format!("The source of {url} does not fit on the disk; ask for more in `resources.disk`{said}")
            }
            Cause::ObjectFormat | Cause::Other => format!("{url} could not be fetched{said}"),
        }
    }

    /// The same for a submodule, whose URL git names in its own words if at all.
    pub(super) fn submodule_message(&self) -> String {
        let why = match self.cause {
            Cause::RepositoryNotFound => "its repository was not found",
            Cause::AuthenticationRequired => "its repository wants a login or refuses access",
            Cause::HostKeyUnknown => "its ssh host key is not known here",
            Cause::CertificateRefused => "its server's TLS certificate was not accepted",
            Cause::HostNotFound => "its host is not known",
            Cause::Unreachable => "its host can't be reached",
            Cause::Timeout => "its server did not answer in time",
            Cause::ConnectionLost => "the connection broke off",
            Cause::ServerError => "its server reported an error of its own",
            Cause::NotARepository => "its URL is not that of a git repository",
            Cause::ProtocolRefused => "its URL is not of the kind http, https or ssh",
            Cause::UnknownRef | Cause::CommitMissing | Cause::CommitNotOffered => {
                "the commit that the repository names is not in it"
            }
            Cause::DiskFull => "it does not fit on the disk; ask for more in `resources.disk`",
            Cause::ObjectFormat | Cause::Other => "git failed",
        };
        format!(
            "A submodule could not be fetched: {why}; check `.gitmodules`, or set `source.submodules` to false{}",
            self.said()
        )
    }

    fn said(&self) -> String {
        if self.line.is_empty() {
            ".".to_owned()
        } else {
            format!(". git said: {}", self.line)
        }
    }
}

/// The last line that isn't blank.
fn last_words(stderr: &str) -> String {
    let last = stderr.lines().rev().map(str::trim).find(|line| !line.is_empty());
    last.unwrap_or("nothing").to_owned()
}
