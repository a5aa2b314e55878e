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
    DumbHttp,
    ProtocolRefused,
    UnknownRef,
    CommitMissing,
    CommitNotOffered,
    ObjectFormat,
    DiskFull,
    HelperKilled,
    LfsMissing,
    LfsFailed,
    Other,
}

/// What tells a cause, in the order in which it counts: what is specific comes before what git adds to any failure.
/// Compared in lower case; a line tells the cause when it holds all the parts. Each holds a space somewhere, which no URL
/// and no ref does: what they are called must not decide.
const SIGNS: &[(Cause, &[&str])] = &[
    (Cause::DiskFull, &["no space left on device"]),
    (Cause::DiskFull, &["disk quota exceeded"]),
    (Cause::HelperKilled, &["died of signal 9"]),
    (Cause::LfsMissing, &["git-lfs", " not found"]),
    (Cause::LfsFailed, &["smudge error: "]),
    (Cause::LfsFailed, &["smudge filter lfs failed"]),
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
    (Cause::UnknownRef, &["couldn't find remote ref"]),
    (Cause::UnknownRef, &["no such remote ref"]),
    (Cause::HostKeyUnknown, &["host key verification failed"]),
    (Cause::AuthenticationRequired, &["could not read username"]),
    (Cause::AuthenticationRequired, &["could not read password"]),
    (Cause::AuthenticationRequired, &["authentication failed"]),
    (Cause::AuthenticationRequired, &["access denied"]),
    (Cause::AuthenticationRequired, &["permission denied ("]),
    (
        Cause::AuthenticationRequired,
        &["unable to update url base from redirection"],
    ),
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
    (Cause::CertificateRefused, &["certificate problem"]),
    (Cause::CertificateRefused, &["certificate verif"]),
    (Cause::CertificateRefused, &["certificate subject name"]),
    (Cause::CertificateRefused, &["verifying the server certificate"]),
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
    (Cause::ConnectionLost, &["ssl_error_syscall in connection"]),
    (Cause::ConnectionLost, &["gnutls_handshake() failed"]),
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
    (Cause::DumbHttp, &["dumb http transport"]),
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
        let logged_in = request.credentials.is_some();
        match self.cause {
            Cause::RepositoryNotFound if logged_in => format!(
                "There is no repository at {url}, or it is hidden from the login in `source.credentials`; check `source.url` and what the login may read{said}"
            ),
            Cause::RepositoryNotFound => format!(
                "There is no repository at {url}, or it is hidden from who isn't logged in; check `source.url`, or name a secret in `source.credentials`{said}"
            ),
            Cause::AuthenticationRequired if logged_in => format!(
                "{url} refuses the login in `source.credentials`; check the secret's data, and that the login may read the repository{said}"
            ),
            Cause::AuthenticationRequired => format!(
                "{url} wants a login or refuses access; check `source.url`, or name a secret of kind `git` in `source.credentials`{said}"
            ),
            Cause::HostKeyUnknown if logged_in => format!(
                "The ssh host key of {url} is not the one in the secret's `known_hosts`, or isn't there at all; put the server's key into the secret in `source.credentials`{said}"
            ),
            Cause::HostKeyUnknown => format!(
                "The ssh host key of {url} is not known here; name a secret with `ssh_private_key` and `known_hosts` in `source.credentials`, or use the repository's https URL{said}"
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
            Cause::DumbHttp => format!(
                "The server of {url} only hands out a repository's files (git's dumb HTTP protocol), and a single commit can't be had from it; serve the repository by `git http-backend`, a forge or ssh{said}"
            ),
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
            Cause::LfsMissing => format!(
                "{url} keeps files in Git LFS, and git-lfs is not installed where the source is fetched; install it (apt-get install git-lfs), or use a source image that has it{said}"
            ),
            Cause::LfsFailed => format!(
                "A file that {url} keeps in Git LFS can't be had; push it (git lfs push --all), and check that whoever may read the repository may read its LFS files{said}"
            ),
            Cause::ObjectFormat | Cause::HelperKilled | Cause::Other => format!("{url} could not be fetched{said}"),
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
            Cause::DumbHttp => "its server only hands out a repository's files (git's dumb HTTP protocol)",
            Cause::ProtocolRefused => "its URL is not of the kind http, https or ssh",
            Cause::UnknownRef | Cause::CommitMissing | Cause::CommitNotOffered => {
                "the commit that the repository names is not in it"
            }
            Cause::DiskFull => "it does not fit on the disk; ask for more in `resources.disk`",
            Cause::LfsMissing => "it keeps files in Git LFS, and git-lfs is not installed where the source is fetched",
            Cause::LfsFailed => "a file that it keeps in Git LFS can't be had",
            Cause::ObjectFormat | Cause::HelperKilled | Cause::Other => "git failed",
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

#[cfg(test)]
mod tests {
    use super::*;

    const SSH_END: &str = "fatal: Could not read from remote repository.\n\nPlease make sure you have the correct \
                           access rights\nand the repository exists.\n";

    /// What git 2.39 with curl 7.88 and OpenSSH 9.2 prints, what GitHub, GitLab and `JGit` servers make it print, and
    /// which line of it is to be quoted.
    const PRINTED: &[(Cause, usize, &str)] = &[
        (
            Cause::RepositoryNotFound,
            0,
            "remote: Repository not found.\nfatal: repository 'https://github.com/a/b.git/' not found\n",
        ),
        (
            Cause::RepositoryNotFound,
            0,
            "fatal: repository 'http://127.0.0.1:1/gone.git/' not found\n",
        ),
        (Cause::RepositoryNotFound, 0, "ERROR: Repository not found.\n{ssh}"),
        (
            Cause::RepositoryNotFound,
            1,
            "remote: \nremote: ERROR: The project you were looking for could not be found or you don't have \
             permission to view it.\nremote: \n{ssh}",
        ),
        (
            Cause::RepositoryNotFound,
            0,
            "fatal: 'a/b.git' does not appear to be a git repository\n{ssh}",
        ),
        (
            Cause::AuthenticationRequired,
            0,
            "fatal: could not read Username for 'https://github.com': terminal prompts disabled\n",
        ),
        (
            Cause::AuthenticationRequired,
            1,
            "remote: HTTP Basic: Access denied. The provided password or token is incorrect.\n\
             fatal: Authentication failed for 'https://gitlab.com/a/b.git/'\n",
        ),
        (
            Cause::AuthenticationRequired,
            0,
            "fatal: unable to access 'https://git.example/a.git/': The requested URL returned error: 403\n",
        ),
        (
            Cause::AuthenticationRequired,
            0,
            "fatal: unable to update url base from redirection:\n  asked for: https://git.example/a/info/refs\n   \
             redirect: https://git.example/login\n",
        ),
        (
            Cause::AuthenticationRequired,
            0,
            "git@github.com: Permission denied (publickey).\n{ssh}",
        ),
        (
            Cause::HostKeyUnknown,
            1,
            "No ED25519 host key is known for github.com and you have requested strict checking.\n\
             Host key verification failed.\n{ssh}",
        ),
        (
            Cause::CertificateRefused,
            0,
            "fatal: unable to access 'https://git.example/a.git/': server certificate verification failed. \
             CAfile: none CRLfile: none\n",
        ),
        (
            Cause::CertificateRefused,
            0,
            "fatal: unable to access 'https://git.example/a.git/': SSL certificate problem: self-signed certificate\n",
        ),
        (
            Cause::CertificateRefused,
            0,
            "fatal: unable to access 'https://git.example/a.git/': SSL: no alternative certificate subject name \
             matches target host name 'git.example'\n",
        ),
        (
            Cause::HostNotFound,
            0,
            "fatal: unable to access 'https://git.invalid/a.git/': Could not resolve host: git.invalid\n",
        ),
        (
            Cause::HostNotFound,
            0,
            "ssh: Could not resolve hostname git.invalid: Name or service not known\n{ssh}",
        ),
        (
            Cause::HostNotFound,
            0,
            "ssh: Could not resolve hostname git.example: Temporary failure in name resolution\n{ssh}",
        ),
        (
            Cause::Unreachable,
            0,
            "fatal: unable to access 'http://127.0.0.1:9/certificate.git/': Failed to connect to 127.0.0.1 port 9 \
             after 0 ms: Couldn't connect to server\n",
        ),
        (
            Cause::Unreachable,
            0,
            "ssh: connect to host 127.0.0.1 port 9: Connection refused\r\n{ssh}",
        ),
        (
            Cause::Timeout,
            0,
            "ssh: connect to host 10.255.255.1 port 22: Connection timed out\r\n{ssh}",
        ),
        (
            Cause::Timeout,
            0,
            "fatal: unable to access 'https://git.example/a.git/': Failed to connect to git.example port 443 after \
             130000 ms: Connection timed out\n",
        ),
        (
            Cause::Timeout,
            0,
            "error: RPC failed; curl 28 Operation too slow. Less than 100 bytes/sec transferred the last 60 seconds\n\
             fatal: expected 'packfile'\n",
        ),
        (
            Cause::Timeout,
            0,
            "fatal: unable to access 'https://git.example/a.git/': The requested URL returned error: 504\n",
        ),
        (
            Cause::ServerError,
            0,
            "error: RPC failed; HTTP 502 curl 22 The requested URL returned error: 502\nfatal: expected 'packfile'\n",
        ),
        (
            Cause::ServerError,
            0,
            "fatal: unable to access 'https://git.example/a.git/': The requested URL returned error: 429\n",
        ),
        (
            Cause::ConnectionLost,
            0,
            "fatal: unable to access 'http://127.0.0.1:1/a.git/': Recv failure: Connection reset by peer\n",
        ),
        (
            Cause::ConnectionLost,
            0,
            "fatal: unable to access 'http://127.0.0.1:1/a.git/': Empty reply from server\n",
        ),
        (
            Cause::ConnectionLost,
            0,
            "error: RPC failed; curl 56 GnuTLS recv error (-9): Error decoding the received TLS packet.\n\
             error: 3247 bytes of body are still expected\n\
             fetch-pack: unexpected disconnect while reading sideband packet\n\
             fatal: early EOF\nfatal: fetch-pack: invalid index-pack output\n",
        ),
        (
            Cause::ConnectionLost,
            0,
            "fatal: unable to access 'https://git.example/a.git/': OpenSSL SSL_connect: SSL_ERROR_SYSCALL in \
             connection to git.example:443\n",
        ),
        (
            Cause::ConnectionLost,
            0,
            "kex_exchange_identification: Connection closed by remote host\n{ssh}",
        ),
        (
            Cause::NotARepository,
            0,
            "fatal: https://git.example/info/refs not valid: is this a git repository?\n",
        ),
        (
            Cause::ProtocolRefused,
            1,
            "Cloning into '/x/library'...\nfatal: transport 'file' not allowed\n\
             fatal: clone of '/srv/library.git' into submodule path '/x/library' failed\n",
        ),
        (
            Cause::UnknownRef,
            0,
            "fatal: couldn't find remote ref refs/heads/certificate\n",
        ),
        (
            Cause::DumbHttp,
            0,
            "fatal: dumb http transport does not support shallow capabilities\n",
        ),
        (
            Cause::CommitMissing,
            0,
            "fatal: remote error: upload-pack: not our ref 0123456789abcdef0123456789abcdef01234567\n",
        ),
        (
            Cause::CommitNotOffered,
            0,
            "error: Server does not allow request for unadvertised object 0123456789abcdef0123456789abcdef01234567\n",
        ),
        (
            Cause::CommitNotOffered,
            0,
            "fatal: remote error: want 0123456789abcdef0123456789abcdef01234567 not valid\n",
        ),
        (
            Cause::ObjectFormat,
            0,
            "fatal: mismatched algorithms: client sha1; server sha256\n",
        ),
        (
            Cause::DiskFull,
            0,
            "fatal: cannot store pack file: No space left on device\nfatal: fetch-pack: invalid index-pack output\n",
        ),
        (
            Cause::Other,
            1,
            "fatal: detected dubious ownership in repository at '/x'\n\tgit config --global --add safe.directory /x\n\n",
        ),
    ];

    #[test]
    fn the_cause_is_told_from_what_git_prints() {
        for (cause, quoted, printed) in PRINTED {
            let printed = printed.replace("{ssh}", SSH_END);
            let refusal = Refusal::of_fetch(&printed);
            assert_eq!(refusal.cause, *cause, "{printed}");
            assert_eq!(refusal.line, printed.lines().nth(*quoted).unwrap().trim(), "{printed}");
        }
    }

    #[test]
    fn what_may_pass_is_the_network_and_the_server() {
        for (cause, ..) in PRINTED {
            let network = [
                Cause::HostNotFound,
                Cause::Unreachable,
                Cause::Timeout,
                Cause::ConnectionLost,
                Cause::ServerError,
            ];
            assert_eq!(cause.may_pass(), network.contains(cause), "{cause:?}");
        }
    }

    #[test]
    fn every_message_names_the_repository_or_the_field_and_quotes_git() {
        let request = Request {
            url: "https://git.example/a.git",
            reference: Some("main"),
            commit: Some("0123456789abcdef0123456789abcdef01234567"),
            submodules: false,
            credentials: None,
        };
        for (_, quoted, printed) in PRINTED {
            let printed = printed.replace("{ssh}", SSH_END);
            let line = printed.lines().nth(*quoted).unwrap().trim();
            let message = Refusal::of_fetch(&printed).message(&request);
            assert!(message.contains(request.url), "{message}");
            assert!(message.ends_with(&format!(". git said: {line}")), "{message}");
            let message = Refusal::of_submodules(&printed).submodule_message();
            assert!(
                message.contains("`source.submodules`") && message.ends_with(line),
                "{message}"
            );
        }
        let unknown = Refusal::missing_ref().message(&request);
        assert_eq!(
            unknown,
            "`source.ref`: there is no branch or tag `main` in https://git.example/a.git."
        );
    }

    #[test]
    fn no_name_of_a_thing_decides() {
        for (_, parts) in SIGNS {
            assert!(
                parts.iter().any(|part| part.contains(' ')) || parts.len() > 1,
                "{parts:?}"
            );
        }
    }
}
