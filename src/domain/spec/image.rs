//! Image references and digests.

use std::{fmt, str::FromStr};

use oci_spec::distribution::Reference;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Invalid;

/// A name to push an image under: registry host, repository and tag, all given in full by the time it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: String,
}

impl ImageRef {
    /// Longest accepted reference, in bytes.
    pub const MAX_LEN: usize = 512;

    /// Registry host with its port, such as `registry.example:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository without the host, such as `team/app`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag, such as `latest`.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl FromStr for ImageRef {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || {
            Invalid::new(
                "expected an image reference such as `registry.example/team/app:1`: lower-case repository, tag, no scheme",
            )
        };
        if text.len() > Self::MAX_LEN {
            return Err(Invalid::new(format!("expected at most {} bytes", Self::MAX_LEN)));
        }
        let reference: Reference = text.parse().map_err(|_| expected())?;
        if reference.digest().is_some() {
            return Err(Invalid::new(
                "expected a tag instead of a digest: an image can't be pushed under a digest chosen beforehand",
            ));
        }
        Ok(Self {
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            tag: reference.tag().unwrap_or("latest").to_owned(),
        })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

impl TryFrom<String> for ImageRef {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.to_string()
    }
}

/// The digest of an image manifest: `sha256:` and 64 lower-case hexadecimal digits (OCI image-spec, descriptor).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b")]
pub struct Digest(String);

impl Digest {
    /// The digest with its algorithm.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = text
            .strip_prefix("sha256:")
            .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new("expected `sha256:` and 64 lower-case hexadecimal digits"))
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}
