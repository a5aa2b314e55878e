//! Where a build's source comes from.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

use super::{Invalid, text::checked_text};
use crate::domain::{id::UploadId, secret::SecretName};

/// The source of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Source {
    /// A git repository.
    Git {
        /// The repository.
        url: GitUrl,
        /// Branch, tag or full ref name; the remote's HEAD when neither this nor `commit` is given.
        #[serde(rename = "ref")]
        reference: Option<GitRef>,
        /// Full commit id; wins over `ref`.
        commit: Option<CommitId>,
        /// Build context within the repository; empty for its root.
        subdir: RelPath,
        /// Whether to fetch submodules.
        submodules: bool,
        /// Secret that opens the repository.
        #[serde(default)]
        credentials: Option<SecretName>,
    },
    /// Files that came with the request.
    Inline {
        /// Path → text.
        files: InlineFiles,
    },
    /// An archive on a web server.
    Archive {
        /// The archive: tar or tar.gz.
        url: ArchiveUrl,
        /// SHA-256 of the file, in hexadecimal digits.
        sha256: Sha256Hex,
        /// Build context within the archive; empty for its root.
        subdir: RelPath,
    },
    /// An archive that was sent to this service before.
    Upload {
        /// What `POST /v1/uploads` called it.
        #[schema(value_type = uuid::Uuid)]
        id: UploadId,
        /// Build context within the archive; empty for its root.
        subdir: RelPath,
    },
}

impl Source {
    /// The secret that opens it.
    pub const fn credentials(&self) -> Option<&SecretName> {
        match self {
            Self::Git { credentials, .. } => credentials.as_ref(),
            Self::Inline { .. } | Self::Archive { .. } | Self::Upload { .. } => None,
        }
    }

    /// The ref that the list of builds can be filtered by.
    pub const fn reference(&self) -> Option<&GitRef> {
        match self {
            Self::Git { reference, .. } => reference.as_ref(),
            Self::Inline { .. } | Self::Archive { .. } | Self::Upload { .. } => None,
        }
    }

    /// Build context within the source; the root for all of it.
    pub fn subdir(&self) -> &str {
        match self {
            Self::Git { subdir, .. } | Self::Archive { subdir, .. } | Self::Upload { subdir, .. } => subdir.as_str(),
            Self::Inline { .. } => "",
        }
    }

    /// The upload that is built from, if one is.
    pub const fn upload(&self) -> Option<UploadId> {
        match self {
            Self::Upload { id, .. } => Some(*id),
            Self::Git { .. } | Self::Inline { .. } | Self::Archive { .. } => None,
        }
    }
}

/// A git repository's address: `http`, `https` or `ssh`, with no password in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "https://git.example/team/app.git")]
pub struct GitUrl(Url);

impl GitUrl {
    /// Longest accepted URL, in bytes.
    pub const MAX_LEN: usize = 2048;

    /// The URL as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether it is reached by ssh.
    pub fn is_ssh(&self) -> bool {
        self.0.scheme() == "ssh"
    }
}

impl FromStr for GitUrl {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || Invalid::new("expected a git URL such as `https://git.example/team/app.git`");
        let too_long = || Invalid::new(format!("expected at most {} bytes", Self::MAX_LEN));
        if text.len() > Self::MAX_LEN {
            return Err(too_long());
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(expected());
        }
        if let Some(url) = scp_form(text) {
            return Err(Invalid::new(format!("expected a URL: write `{url}`")));
        }
        let url = Url::parse(text).map_err(|_| expected())?;
        match url.scheme() {
            "http" | "https" | "ssh" => {}
            other => {
                return Err(Invalid::new(format!(
                    "expected the scheme https, http or ssh, not `{other}`"
                )));
            }
        }
        // git decodes percent signs before it hands host and user to ssh as arguments, so only what needs no decoding
        // is accepted; what starts with a dash would be read as an option (CVE-2017-1000117).
        let plain = |text: &str| {
            !text.starts_with('-')
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'[' | b']' | b':'))
        };
        if url.host_str().is_none_or(|host| host.is_empty() || !plain(host)) || !plain(url.username()) {
            return Err(expected());
        }
        if url.password().is_some() || (url.scheme() != "ssh" && !url.username().is_empty()) {
            return Err(Invalid::new(
                "expected a URL without user and password: it is stored and shown",
            ));
        }
        if url.fragment().is_some() || url.query().is_some() {
            return Err(Invalid::new(
                "expected a URL without query and fragment: use `ref`, `commit` and `subdir`",
            ));
        }
        if url.path().len() < 2 || has_encoded_control(url.path()) {
            return Err(expected());
        }
        // Normalising may have made it longer, and it has to read back.
        if url.as_str().len() > Self::MAX_LEN {
            return Err(too_long());
        }
        Ok(Self(url))
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
                .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
    };
    (plain(user) && plain(name) && !path.starts_with("//"))
        .then(|| format!("ssh://{host}/{}", path.trim_start_matches('/')))
}

/// Whether a percent-encoded control character is in the path.
fn has_encoded_control(path: &str) -> bool {
    path.as_bytes().windows(3).any(|window| {
        window[0] == b'%'
            && (matches!(window[1], b'0' | b'1') || window.eq_ignore_ascii_case(b"%7f"))
            && window[2].is_ascii_hexdigit()
    })
}

impl fmt::Display for GitUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl TryFrom<String> for GitUrl {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<GitUrl> for String {
    fn from(url: GitUrl) -> Self {
        url.0.into()
    }
}

/// An archive's address: `http` or `https`, with no password in it. A query is part of it, as it is in signed links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "https://files.example/app-1.2.tar.gz")]
pub struct ArchiveUrl(Url);

impl ArchiveUrl {
    /// Longest accepted URL, in bytes.
    pub const MAX_LEN: usize = 2048;

    /// The URL as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for ArchiveUrl {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || Invalid::new("expected a URL such as `https://files.example/app-1.2.tar.gz`");
        let too_long = || Invalid::new(format!("expected at most {} bytes", Self::MAX_LEN));
        if text.len() > Self::MAX_LEN {
            return Err(too_long());
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(expected());
        }
        let url = Url::parse(text).map_err(|_| expected())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Invalid::new(format!(
                "expected the scheme https or http, not `{}`",
                url.scheme()
            )));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(expected());
        }
        if url.password().is_some() || !url.username().is_empty() {
            return Err(Invalid::new(
                "expected a URL without user and password: it is stored and shown",
            ));
        }
        if url.fragment().is_some() {
            return Err(Invalid::new(
                "expected a URL without a fragment: a folder goes into `subdir`",
            ));
        }
        // Normalising may have made it longer, and it has to read back.
        if url.as_str().len() > Self::MAX_LEN {
            return Err(too_long());
        }
        Ok(Self(url))
    }
}

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl TryFrom<String> for ArchiveUrl {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ArchiveUrl> for String {
    fn from(url: ArchiveUrl) -> Self {
        url.0.into()
    }
}

checked_text! {
    /// SHA-256 of a file: 64 lower-case hexadecimal digits, as `sha256sum` prints them.
    Sha256Hex, |text| {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(())
        } else {
            Err(Invalid::new("expected the file's SHA-256 as 64 lower-case hexadecimal digits, as `sha256sum` prints it"))
        }
    }
}

checked_text! {
    /// Where the Dockerfile is: a path within the build context or, with a `/` in front, within the whole source.
    DockerfilePath, |text| {
        let path = text.strip_prefix('/').unwrap_or(text);
        if path.parse::<RelPath>().is_ok_and(|path| !path.is_root()) {
            Ok(())
        } else {
            Err(Invalid::new("expected a path such as `docker/Dockerfile` in the context, or `/docker/Dockerfile` from the source's root: no trailing `/`, no `.` or `..`, at most 1024 bytes; left out it is `Dockerfile`"))
        }
    }
}

impl DockerfilePath {
    /// Where a Dockerfile is expected when nobody says otherwise.
    pub fn usual() -> Self {
        Self("Dockerfile".to_owned())
    }

    /// The path from the source's root, where it counts from there and not from the context.
    pub fn from_root(&self) -> Option<&str> {
        self.0.strip_prefix('/')
    }
}

checked_text! {
    /// A branch, a tag or a full ref name, by the rules of `git check-ref-format`; never starts with a dash.
    GitRef, |text| {
        let component = |part: &str| !part.is_empty() && !part.starts_with('.') && part.strip_suffix(".lock").is_none();
        let valid = (1..=255).contains(&text.len())
            && text.split('/').all(component)
            && !text.starts_with('-')
            && !text.ends_with('.')
            && !text.contains("..")
            && !text.contains("@{")
            && text != "@"
            && !text.contains([' ', '~', '^', ':', '?', '*', '[', '\\'])
            && !text.chars().any(char::is_control);
        if valid {
            Ok(())
        } else {
            Err(Invalid::new("expected a branch, a tag or a full ref name such as `main` or `refs/tags/v1`"))
        }
    }
}

checked_text! {
    /// A full commit id: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
    CommitId, |text| {
        let valid = matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if valid {
            Ok(())
        } else {
            Err(Invalid::new("expected a full commit id of 40 or 64 lower-case hexadecimal digits; a branch or tag goes into `ref`"))
        }
    }
}

checked_text! {
    /// A relative path that stays inside its folder; empty for the folder itself where that makes sense.
    RelPath, |text| {
        let component = |part: &str| (1..=255).contains(&part.len()) && part != "." && part != "..";
        let valid = text.is_empty()
            || (text.len() <= 1024 && text.split('/').all(component) && !text.chars().any(char::is_control));
        if valid {
            Ok(())
        } else {
            Err(Invalid::new("expected a relative path such as `docker/Dockerfile`: no leading or trailing `/`, no `.` or `..`, at most 1024 bytes"))
        }
    }
}

impl RelPath {
    /// The folder itself.
    pub fn root() -> Self {
        Self(String::new())
    }

    /// Whether this is the folder itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

/// A source small enough to come with the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
#[schema(value_type = BTreeMap<String, String>)]
pub struct InlineFiles(BTreeMap<RelPath, String>);

impl InlineFiles {
    /// Most files in one request.
    pub const MAX_FILES: usize = 256;
    /// Most bytes of paths and content together. What is inline travels inside the pod object, whose annotations
    /// Kubernetes limits to 256 KiB; base64 takes a third of that.
    pub const MAX_BYTES: usize = 128 * 1024;

    /// Path → text.
    pub const fn files(&self) -> &BTreeMap<RelPath, String> {
        &self.0
    }

    /// Checks all files and reports everything that is wrong, beside the path that it is about; what is about all of
    /// them has none.
    pub fn check(files: BTreeMap<String, String>) -> Result<Self, Vec<(Option<String>, Invalid)>> {
        let mut problems = Vec::new();
        if files.is_empty() || files.len() > Self::MAX_FILES {
            problems.push((None, Invalid::new(format!("expected 1 to {} files", Self::MAX_FILES))));
        }
        let bytes: usize = files.iter().map(|(path, text)| path.len() + text.len()).sum();
        if bytes > Self::MAX_BYTES {
            let detail = format!(
                "expected at most {} bytes in all, got {bytes}; use a git source for more",
                Self::MAX_BYTES
            );
            problems.push((None, Invalid::new(detail)));
        }
        let mut checked = BTreeMap::new();
        for (path, text) in files {
            if text.contains('\0') {
                problems.push((Some(path.clone()), Invalid::new("expected text without NUL")));
            }
            match path.parse::<RelPath>() {
                Ok(parsed) if !parsed.is_root() => {
                    checked.insert(parsed, text);
                }
                _ => problems.push((
                    Some(path),
                    Invalid::new(
                        "expected a relative path such as `src/main.c` as the key: no leading or trailing `/`, no `.` or `..`",
                    ),
                )),
            }
        }
        for path in checked.keys() {
            let folders = path.as_str().match_indices('/').map(|(end, _)| &path.as_str()[..end]);
            for folder in folders {
                if folder
                    .parse()
                    .is_ok_and(|folder: RelPath| checked.contains_key(&folder))
                {
                    let detail = format!("`{folder}` can't be both a file and the folder of this one");
                    problems.push((Some(path.to_string()), Invalid::new(detail)));
                }
            }
        }
        if problems.is_empty() {
            Ok(Self(checked))
        } else {
            Err(problems)
        }
    }
}

impl TryFrom<BTreeMap<String, String>> for InlineFiles {
    type Error = Invalid;

    fn try_from(files: BTreeMap<String, String>) -> Result<Self, Self::Error> {
        Self::check(files).map_err(|problems| {
            let lines: Vec<String> = problems
                .into_iter()
                .map(|(path, problem)| path.map_or_else(|| problem.to_string(), |path| format!("`{path}`: {problem}")))
                .collect();
            Invalid::new(lines.join("; "))
        })
    }
}

impl From<InlineFiles> for BTreeMap<String, String> {
    fn from(files: InlineFiles) -> Self {
        files.0.into_iter().map(|(path, text)| (path.into(), text)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn git_urls() {
        for text in [
            "https://git.example/team/app.git",
            "http://git.example:3000/app",
            "ssh://git@git.example/team/app.git",
            "ssh://git.example:2222/app",
            "https://[::1]:8443/app",
            "https://git.example/team%20a/app.git",
        ] {
            assert!(text.parse::<GitUrl>().is_ok(), "{text}");
        }
        for text in [
            "",
            "app",
            "/srv/app.git",
            "file:///srv/app.git",
            "git://git.example/app.git",
            "ext::sh -c id",
            "ext::id",
            "https://git.example",
            "https://git.example/",
            "https://me:secret@git.example/app.git",
            "https://me@git.example/app.git",
            "ssh://me:secret@git.example/app.git",
            "https://git.example/app.git?token=x",
            "https://git.example/app.git#main",
            "https://git.example/app.git\n",
            "https://git.example/a%0ab",
            "https://git.example/a%7Fb",
            "ssh://-oProxyCommand=id/app",
            "ssh://%2DoProxyCommand=id/app",
            "ssh://-l@git.example/app",
            "ssh://%2Dl@git.example/app",
            "--upload-pack=id",
        ] {
            assert!(text.parse::<GitUrl>().is_err(), "{text}");
        }
        let long = format!("https://git.example/{}", "é".repeat(600));
        assert!(long.parse::<GitUrl>().is_err(), "it would not read back");
    }

    #[test]
    fn the_short_form_of_ssh_is_answered_with_the_long_one() {
        let error = "git@git.example:team/app.git".parse::<GitUrl>().expect_err("no URL");
        assert!(error.0.contains("`ssh://git@git.example/team/app.git`"), "{error}");
    }

    #[test]
    fn refs() {
        for text in ["main", "v1.2", "feature/x", "refs/tags/v1", "refs/heads/a-b", "übung"] {
            assert!(text.parse::<GitRef>().is_ok(), "{text}");
        }
        for text in [
            "",
            "-x",
            "--upload-pack=id",
            "a..b",
            "a b",
            "a~1",
            "a^",
            "a:b",
            "a?",
            "a*",
            "a[",
            "a\\b",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
            "a.lock",
            "a.lock/b",
            "a.",
            "@",
            "a@{1}",
            "a\nb",
            "a\u{7f}",
        ] {
            assert!(text.parse::<GitRef>().is_err(), "{text}");
        }
    }

    #[test]
    fn commits() {
        assert!("a".repeat(40).parse::<CommitId>().is_ok());
        assert!("0".repeat(64).parse::<CommitId>().is_ok());
        for text in ["", "abc", &"a".repeat(39), &"A".repeat(40), &"g".repeat(40)] {
            assert!(text.parse::<CommitId>().is_err(), "{text}");
        }
    }

    #[test]
    fn paths() {
        for text in ["", "Dockerfile", "a/b/c", ".hidden", "a b", "-f", "..."] {
            assert!(text.parse::<RelPath>().is_ok(), "{text}");
        }
        for text in [
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "./a",
            "a\0",
            "a\n",
            &"a".repeat(256),
        ] {
            assert!(text.parse::<RelPath>().is_err(), "{text}");
        }
    }

    fn check(files: &[(&str, &str)]) -> Result<InlineFiles, Vec<(Option<String>, Invalid)>> {
        InlineFiles::check(
            files
                .iter()
                .map(|(path, text)| ((*path).into(), (*text).into()))
                .collect(),
        )
    }

    #[test]
    fn every_bad_inline_file_is_named() {
        let problems = check(&[("ok", ""), ("../up", ""), ("nul", "\0"), ("a", ""), ("a/b/c", "")]).expect_err("bad");
        let paths: Vec<_> = problems.iter().map(|(path, _)| path.as_deref()).collect();
        assert_eq!(paths, [Some("../up"), Some("nul"), Some("a/b/c")]);
        assert!(check(&[]).is_err());
        assert!(check(&[("big", &"x".repeat(InlineFiles::MAX_BYTES))]).is_err());
        assert!(check(&[("a", ""), ("a-b/c", ""), ("ab", "")]).is_ok());
    }

    proptest! {
        #[test]
        fn an_accepted_url_reads_back(text in "(https|http|ssh)://[a-z@%.:-]{1,12}/[ -~é]{0,20}") {
            if let Ok(url) = text.parse::<GitUrl>() {
                prop_assert_eq!(url.as_str().parse(), Ok(url.clone()));
                prop_assert!(!url.as_str().contains(|c: char| c.is_control() || c.is_whitespace()));
            }
        }

        #[test]
        fn an_accepted_path_stays_inside(text in "[a./\\\\\0-]{0,12}") {
            if let Ok(path) = text.parse::<RelPath>() {
                let mut components = std::path::Path::new(path.as_str()).components();
                prop_assert!(components.all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }

        #[test]
        fn an_accepted_ref_is_no_option(text in "\\PC{0,12}") {
            if let Ok(reference) = text.parse::<GitRef>() {
                prop_assert!(!reference.as_str().starts_with('-'));
                prop_assert!(!reference.as_str().contains(".."));
            }
        }
    }
}
