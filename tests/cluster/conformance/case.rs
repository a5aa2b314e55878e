//! What a row of the table is made of.

use serde_json::Value;

use super::{Builder, Image};

/// One thing that Dockerfiles can say.
pub(super) struct Case {
    /// The row's name.
    pub(super) name: &'static str,
    pub(super) source: Source,
    /// A Dockerfile that is built and pushed first; its image's name is the build argument `BASE`.
    pub(super) base: Option<&'static str>,
    /// Changes the request.
    pub(super) adjust: fn(&mut Value),
    /// Looks at the image.
    pub(super) check: fn(&Image, Builder) -> Result<(), String>,
    /// What buildah makes of it; BuildKit understands all.
    pub(super) buildah: Support,
    pub(super) buildkit: Support,
}

pub(super) enum Source {
    Files(&'static [(&'static str, &'static str)]),
    Links {
        files: &'static [(&'static str, &'static str)],
        links: &'static [(&'static str, &'static str)],
    },
}

/// What a builder makes of a case.
#[derive(Clone, Copy)]
pub(super) enum Support {
    Yes,
    /// It works, with something to know.
    Note(&'static str),
    /// The build fails with this code and a message that holds these words.
    Refused {
        code: &'static str,
        words: &'static [&'static str],
    },
}

impl Case {
    pub(super) const fn support(&self, builder: Builder) -> Support {
        match builder {
            Builder::Buildkit => self.buildkit,
            Builder::Buildah => self.buildah,
        }
    }
}

/// A row to begin from.
pub(super) const CASE: Case = Case {
    name: "",
    source: Source::Files(&[]),
    base: None,
    adjust: |_| {},
    check: |_, _| Ok(()),
    buildah: Support::Yes,
    buildkit: Support::Yes,
};
