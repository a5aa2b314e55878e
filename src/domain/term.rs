//! What builds can be found by: the ref, the images and the labels of their specifications, each as one text.

use std::{collections::BTreeSet, str::FromStr};

use super::spec::{BuildSpec, GitRef, ImageRef, Invalid, LabelKey, LabelValue};

/// A text that a build has or hasn't. Builds that have it are found without looking at others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term(String);

impl Term {
    /// Every term of a specification.
    pub fn of(spec: &BuildSpec) -> BTreeSet<Self> {
        let reference = spec.source.reference().map(Self::reference);
        let images = spec
            .images
            .iter()
            .flat_map(|image| [Self::image(image), Self::repository(image)]);
        let labels = spec
            .labels
            .iter()
            .flat_map(|(key, value)| [Self::label(key), Self::label_value(key, value)]);
        reference.into_iter().chain(images).chain(labels).collect()
    }

    /// The term as it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn reference(reference: &GitRef) -> Self {
        Self(format!("ref={}", reference.as_str()))
    }

    fn image(image: &ImageRef) -> Self {
        Self(format!("image={image}"))
    }

    fn repository(image: &ImageRef) -> Self {
        Self(format!("image={}/{}", image.registry(), image.repository()))
    }

    fn label(key: &LabelKey) -> Self {
        Self(format!("label={}", key.as_str()))
    }

    fn label_value(key: &LabelKey, value: &LabelValue) -> Self {
        Self(format!("label={}={}", key.as_str(), value.as_str()))
    }
}

/// Reads a git ref to be searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefTerm(pub Term);

impl FromStr for RefTerm {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        text.parse::<GitRef>()
            .map(|reference| Self(Term::reference(&reference)))
    }
}

/// Reads an image to be searched for: with a tag that very name, without one any tag of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageTerm(pub Term);

impl FromStr for ImageTerm {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let image: ImageRef = text.parse()?;
        let tagged = text.rsplit('/').next().is_some_and(|last| last.contains(':'));
        Ok(Self(if tagged {
            Term::image(&image)
        } else {
            Term::repository(&image)
        }))
    }
}

/// Reads a label to be searched for: `key=value`, or `key` for any value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelTerm(pub Term);

impl FromStr for LabelTerm {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Ok(Self(match text.split_once('=') {
            Some((key, value)) => Term::label_value(&key.parse()?, &value.parse()?),
            None => Term::label(&text.parse()?),
        }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::spec::{Limits, request::BuildRequest};

    #[test]
    fn whatever_a_build_has_is_found_by_what_a_caller_would_write() {
        let document = json!({
            "source": {"type": "git", "url": "https://git.example/app.git", "ref": "release/1"},
            "images": ["Registry.example:5000/team/app", "registry.example/app:v1"],
            "labels": {"team": "a=b", "empty": ""},
        });
        let spec = BuildRequest::read(&document, &Limits::default())
            .expect("accepted")
            .spec;
        let terms = Term::of(&spec);
        for image in [
            "registry.example:5000/team/app",
            "registry.example:5000/team/app:latest",
            "registry.example/app",
            "registry.example/app:v1",
        ] {
            assert!(
                terms.contains(&image.parse::<ImageTerm>().expect("an image").0),
                "{image}"
            );
        }
        for label in ["team", "team=a=b", "empty", "empty="] {
            assert!(
                terms.contains(&label.parse::<LabelTerm>().expect("a label").0),
                "{label}"
            );
        }
        assert!(terms.contains(&"release/1".parse::<RefTerm>().expect("a ref").0));
        assert_eq!(terms.len(), 9, "{terms:?}");
        assert!(
            "registry.example/app:v2"
                .parse::<ImageTerm>()
                .is_ok_and(|term| !terms.contains(&term.0))
        );
        assert!("a b".parse::<LabelTerm>().is_err());
    }
}
