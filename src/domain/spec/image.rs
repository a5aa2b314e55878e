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
        // The grammar below takes any Unicode letter in a tag; registries don't.
        if text.is_empty() || !text.is_ascii() {
            return Err(expected());
        }
        if text.len() > Self::MAX_LEN {
            return Err(Invalid::new(format!("expected at most {} bytes", Self::MAX_LEN)));
        }
        let host = text.split_once('/').map_or("", |(host, _)| host);
        if !is_registry(host) {
            return Err(Invalid::new(format!(
                "expected the registry's host in front, such as `registry.example/{text}`; Docker Hub's is `docker.io`",
                text = text.trim_start_matches('/'),
            )));
        }
        if let Some((_, port)) = host.split_once(':')
            && !port.parse::<u16>().is_ok_and(|port| port > 0)
        {
            return Err(Invalid::new(
                "expected a port from 1 to 65535 after the registry's host, and no scheme: `registry.example:5000/team/app:1`",
            ));
        }
        // The case of a host means nothing, but the grammar knows Docker Hub's by its letters.
        let text = format!("{}{}", host.to_ascii_lowercase(), &text[host.len()..]);
        let reference: Reference = text.parse().map_err(|_| expected())?;
        if reference.digest().is_some() {
            return Err(Invalid::new(
                "expected a tag instead of a digest: an image can't be pushed under a digest chosen beforehand",
            ));
        }
        let image = Self {
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            tag: reference.tag().unwrap_or("latest").to_owned(),
        };
        // Written out in full it is longer, and has to read back.
        if image.to_string().len() > Self::MAX_LEN {
            return Err(Invalid::new(format!(
                "expected at most {} bytes with the tag",
                Self::MAX_LEN
            )));
        }
        Ok(image)
    }
}

/// Whether the first part of a reference names a registry: the rule by which every client tells a host from a folder
/// of Docker Hub (distribution/reference).
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_are_written_out_in_full() {
        for (text, full) in [
            ("registry.example/team/app:1", "registry.example/team/app:1"),
            ("registry.example/app", "registry.example/app:latest"),
            (
                "registry.example:5000/app:v1.2_x-3",
                "registry.example:5000/app:v1.2_x-3",
            ),
            ("localhost/app:1", "localhost/app:1"),
            ("localhost:5000/app:1", "localhost:5000/app:1"),
            ("127.0.0.1:5000/a/b/c:1", "127.0.0.1:5000/a/b/c:1"),
            ("Registry.Example/app:1", "registry.example/app:1"),
            ("docker.io/app:1", "docker.io/library/app:1"),
            ("Docker.IO/app:1", "docker.io/library/app:1"),
            ("index.docker.io/me/app:1", "docker.io/me/app:1"),
        ] {
            let image: ImageRef = text.parse().expect(text);
            assert_eq!(image.to_string(), full);
        }
    }

    #[test]
    fn a_reference_without_a_registry_is_refused_by_name() {
        for text in ["app", "app:1", "team/app:1", "library/ubuntu"] {
            let error = text.parse::<ImageRef>().expect_err(text);
            assert!(error.0.contains("registry's host"), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "",
            " ",
            "https://registry.example/app:1",
            "registry.example/App:1",
            "registry.example/app:",
            "registry.example/app:é",
            "registry.example/app:1 --opt",
            "registry.example/-app:1",
            "registry.example/app:1,push=true",
            "registry.example:0/app:1",
            "registry.example:65536/app:1",
            "registry.example:/app:1",
            "-registry.example/app:1",
            "registry.example//app:1",
            "registry.example/app@sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b",
        ] {
            assert!(text.parse::<ImageRef>().is_err(), "{text}");
        }
        assert!(format!("r.example/{}:1", "a".repeat(256)).parse::<ImageRef>().is_err());
    }

    proptest! {
        #[test]
        fn an_accepted_reference_reads_back(text in "[a-zA-Z0-9.:/_@é-]{0,40}") {
            if let Ok(image) = text.parse::<ImageRef>() {
                prop_assert_eq!(image.to_string().parse(), Ok(image));
            }
        }

        #[test]
        fn a_well_formed_reference_is_accepted(
            text in r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8}){1,3}(:[1-9][0-9]{0,3})?(/[a-z0-9]{1,8}([._-][a-z0-9]{1,4})?){1,3}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?"
        ) {
            let image = text.parse::<ImageRef>();
            prop_assert!(image.is_ok(), "{:?}", image);
            let image = image.expect("checked");
            prop_assert_eq!(image.to_string().parse(), Ok(image));
        }
    }
}
