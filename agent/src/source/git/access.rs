//! How git logs in. Its own settings name a helper for one server, which is this program again; ssh is told which key
//! and which host keys to use, and no others. Neither sees more than the names of files.

use std::{env, path::Path};

use kiln_agent::wire::plan::SourceCredentials;

use crate::step::Failure;

/// How ssh is run: it may not ask anybody anything.
const SSH: &str = "ssh -oBatchMode=yes -oConnectTimeout=30";

/// What git is told beside its fixed settings.
pub(super) struct Access {
    /// A setting that names the helper, for passwords.
    pub(super) helper: Option<(String, String)>,
    /// The command for ssh, which git passes through a shell.
    pub(super) ssh: String,
}

impl Access {
    /// The way into the server of `url`.
    pub(super) fn new(url: &str, credentials: Option<&SourceCredentials>) -> Result<Self, Failure> {
        let mut access = Self {
            helper: None,
            ssh: SSH.to_owned(),
        };
        match credentials {
            None => {}
            Some(SourceCredentials::Password { username, password }) => {
                let agent = env::current_exe()
                    .map_err(|error| Failure::internal(format!("the agent can't find itself: {error}")))?;
                let server = server(url);
                let command = [
                    quoted(&agent)?,
                    "credential --for".to_owned(),
                    quoted(Path::new(&server))?,
                    "--username".to_owned(),
                    quoted(username)?,
                    "--password".to_owned(),
                    quoted(password)?,
                ];
                access.helper = Some((format!("credential.{server}.helper"), format!("!{}", command.join(" "))));
            }
            Some(SourceCredentials::Ssh { key, known_hosts }) => {
                // Nothing else that ssh finds where it runs: no configuration, no agent, no other key or host.
                access.ssh = format!(
                    "{SSH} -F/dev/null -oIdentitiesOnly=yes -oIdentityAgent=none -oStrictHostKeyChecking=yes \
                     -oUpdateHostKeys=no -oGlobalKnownHostsFile=/dev/null -oUserKnownHostsFile={} -i{}",
                    quoted(known_hosts)?,
                    quoted(key)?,
                );
            }
        }
        Ok(access)
    }
}

/// Scheme and host of a URL, with its port.
fn server(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}")
}

/// A path or URL as one word of a shell. They come from the service, which makes them of plain characters; one that
/// isn't is an error, not a puzzle.
fn quoted(path: &Path) -> Result<String, Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_:@[]".contains(&byte);
    match path.to_str() {
        Some(text) if !text.is_empty() && text.bytes().all(plain) => Ok(format!("'{text}'")),
        _ => Err(Failure::internal(format!(
            "{} holds characters that a path to credentials can't: install Kiln in a plain one",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_is_for_one_server() {
        for (url, expected) in [
            ("https://git.example/team/app.git", "https://git.example"),
            ("http://git.example:3000/app", "http://git.example:3000"),
            ("https://[::1]:8443/app", "https://[::1]:8443"),
            ("https://user@git.example/a@b", "https://git.example"),
        ] {
            assert_eq!(server(url), expected);
        }
        let credentials = SourceCredentials::Password {
            username: "/c/git-username".into(),
            password: "/c/git-password".into(),
        };
        let access = Access::new("https://git.example/app.git", Some(&credentials)).unwrap();
        let (key, helper) = access.helper.unwrap();
        assert_eq!(key, "credential.https://git.example.helper");
        assert!(
            helper.starts_with("!'/")
                && helper.ends_with(
                    " credential --for 'https://git.example' --username '/c/git-username' --password '/c/git-password'"
                ),
            "{helper}"
        );
        assert_eq!(access.ssh, SSH);
    }

    #[test]
    fn ssh_trusts_what_it_is_given_and_nothing_else() {
        let credentials = SourceCredentials::Ssh {
            key: "/c/key".into(),
            known_hosts: "/c/known".into(),
        };
        let access = Access::new("ssh://git@git.example/app.git", Some(&credentials)).unwrap();
        assert!(access.helper.is_none());
        for part in [
            "-oStrictHostKeyChecking=yes",
            "-oUserKnownHostsFile='/c/known'",
            "-i'/c/key'",
            "-oBatchMode=yes",
        ] {
            assert!(access.ssh.contains(part), "{}", access.ssh);
        }
    }

    #[test]
    fn what_a_shell_would_read_differently_is_refused() {
        for path in ["/a'b", "/a b", "/a$b", ""] {
            assert!(quoted(Path::new(path)).is_err(), "{path}");
        }
    }
}
