//! Git URLs as `docker build` takes them: `https://git.example/app.git#ref:folder`.

use url::Url;

/// A git source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GitContext {
    /// The repository.
    pub(super) url: String,
    /// Branch, tag or full ref name.
    pub(super) reference: Option<String>,
    /// Full commit id.
    pub(super) commit: Option<String>,
    /// The context's folder in the repository.
    pub(super) subdir: Option<String>,
}

/// What an argument of `kiln build` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A folder of this machine.
    Folder(String),
    /// A git repository.
    Git(GitContext),
    /// A tar archive that the build fetches.
    Archive(String),
}

impl Place {
    /// Reads the argument. What looks like no URL is a folder.
    pub(super) fn parse(text: &str) -> Self {
        let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
        if let Some(url) = scp_form(address) {
            return Self::Git(GitContext::new(url, fragment));
        }
        match Url::parse(address) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && is_archive(url.path()) => {
                Self::Archive(text.to_owned())
            }
            // Other schemes than git's go there, too: the service says what it takes.
            Ok(_) if address.contains("://") => Self::Git(GitContext::new(address.to_owned(), fragment)),
            _ => Self::Folder(text.to_owned()),
        }
    }
}

fn is_archive(path: &str) -> bool {
    [".tar", ".tar.gz", ".tgz"].iter().any(|end| path.ends_with(end))
}

impl GitContext {
    fn new(url: String, fragment: &str) -> Self {
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let full =
            matches!(reference.len(), 40 | 64) && reference.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let subdir = subdir.trim_matches('/');
        Self {
            url,
            reference: some(reference).filter(|_| !full),
            commit: some(reference).filter(|_| full),
            subdir: some(subdir).filter(|subdir| subdir != "."),
        }
    }
}

/// The URL for git's short form `user@host:path`.
fn scp_form(text: &str) -> Option<String> {
    let (host, path) = text.split_once(':')?;
    let (user, name) = host.split_once('@')?;
    let plain = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    (plain(user) && plain(name) && !path.starts_with("//"))
        .then(|| format!("ssh://{host}/{}", path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(text: &str) -> (String, Option<String>, Option<String>, Option<String>) {
        match Place::parse(text) {
            Place::Git(git) => (git.url, git.reference, git.commit, git.subdir),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn urls_are_read_as_docker_does() {
        let url = "https://git.example/team/app.git".to_owned();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(git(&url), (url.clone(), None, None, None));
        assert_eq!(git(&format!("{url}#main")), (url.clone(), some("main"), None, None));
        assert_eq!(
            git(&format!("{url}#v1:docker/app")),
            (url.clone(), some("v1"), None, some("docker/app"))
        );
        assert_eq!(
            git(&format!("{url}#:docker/")),
            (url.clone(), None, None, some("docker"))
        );
        let commit = "a".repeat(40);
        assert_eq!(
            git(&format!("{url}#{commit}:x")),
            (url.clone(), None, Some(commit), some("x"))
        );
        assert_eq!(
            git(&format!("{url}#refs/pull/7/head")),
            (url, some("refs/pull/7/head"), None, None)
        );
        assert_eq!(
            git("git@git.example:team/app.git#main").0,
            "ssh://git@git.example/team/app.git"
        );
        assert_eq!(git("ssh://git@git.example/app").0, "ssh://git@git.example/app");
        // Left to the service, which says what it takes.
        assert_eq!(git("git://git.example/app").0, "git://git.example/app");
    }

    #[test]
    fn archives_and_folders_are_told_apart() {
        let archive = "https://files.example/app-1.2.tar.gz";
        assert_eq!(Place::parse(archive), Place::Archive(archive.to_owned()));
        for folder in [".", "/srv/app", "app", "../app#2", "a:b", "C:"] {
            assert_eq!(Place::parse(folder), Place::Folder(folder.to_owned()), "{folder}");
        }
    }
}
