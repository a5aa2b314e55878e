//! Where a build's source comes from.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use url::Url;

use super::{Invalid, text::checked_text};

/// The source of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    },
    /// Files that came with the request.
    Inline {
        /// Path → text.
        files: InlineFiles,
    },
}

impl Source {
    /// The ref that the list of builds can be filtered by.
    pub const fn reference(&self) -> Option<&GitRef> {
        match self {
            Self::Git { reference, .. } => reference.as_ref(),
            Self::Inline { .. } => None,
        }
    }
}

/// A git repository's address: `http`, `https` or `ssh`, with no password in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GitUrl(Url);

impl GitUrl {
    /// Longest accepted URL, in bytes.
    pub const MAX_LEN: usize = 2048;

    /// The URL as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for GitUrl {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || Invalid::new("expected a git URL such as `https://git.example/team/app.git`");
        if text.len() > Self::MAX_LEN {
            return Err(Invalid::new(format!("expected at most {} bytes", Self::MAX_LEN)));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(expected());
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
        // A host that starts with a dash would be read as an option by ssh (CVE-2017-1000117).
        if url
            .host_str()
            .is_none_or(|host| host.is_empty() || host.starts_with('-'))
            || url.username().starts_with('-')
        {
            return Err(expected());
        }
        if url.password().is_some() || (url.scheme() != "ssh" && !url.username().is_empty()) {
            return Err(Invalid::new(
                "expected a URL without user and password: it is stored and shown; use `credentials`",
            ));
        }
        if url.fragment().is_some() || url.query().is_some() {
            return Err(Invalid::new(
                "expected a URL without query and fragment: use `ref`, `commit` and `subdir`",
            ));
        }
        Ok(Self(url))
    }
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

checked_text! {
    /// A branch, a tag or a full ref name, by the rules of `git check-ref-format`; never starts with a dash.
    GitRef, |text| {
        let component = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
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
        let component = |part: &str| !part.is_empty() && part != "." && part != "..";
        let valid = text.is_empty()
            || (text.len() <= 1024 && text.split('/').all(component) && !text.chars().any(char::is_control));
        if valid {
            Ok(())
        } else {
            Err(Invalid::new("expected a relative path such as `docker/Dockerfile`: no leading `/`, no `.` or `..`"))
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
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
}

impl TryFrom<BTreeMap<String, String>> for InlineFiles {
    type Error = Invalid;

    fn try_from(files: BTreeMap<String, String>) -> Result<Self, Self::Error> {
        if files.is_empty() || files.len() > Self::MAX_FILES {
            return Err(Invalid::new(format!("expected 1 to {} files", Self::MAX_FILES)));
        }
        let bytes: usize = files.iter().map(|(path, text)| path.len() + text.len()).sum();
        if bytes > Self::MAX_BYTES {
            return Err(Invalid::new(format!(
                "expected at most {} bytes in all, got {bytes}; use a git source for more",
                Self::MAX_BYTES
            )));
        }
        let files = files
            .into_iter()
            .map(|(path, text)| match path.parse::<RelPath>() {
                Ok(path) if !path.is_root() => Ok((path, text)),
                _ => Err(Invalid::new(format!(
                    "`{path}` is not a relative path such as `src/main.c`: no leading `/`, no `.` or `..`"
                ))),
            })
            .collect::<Result<BTreeMap<_, _>, _>>()?;
        if let Some((file, folder)) = files.keys().find_map(|path| {
            let folder = files
                .keys()
                .find(|other| path.as_str().starts_with(&format!("{other}/")))?;
            Some((path, folder))
        }) {
            return Err(Invalid::new(format!(
                "`{folder}` can't be both a file and the folder of `{file}`"
            )));
        }
        Ok(Self(files))
    }
}

impl From<InlineFiles> for BTreeMap<String, String> {
    fn from(files: InlineFiles) -> Self {
        files.0.into_iter().map(|(path, text)| (path.into(), text)).collect()
    }
}
