//! Hooks: what forges and registries send, and what is to be built of it.
//!
//! Each sender has a file: whether a delivery is the sender's own, checked over its raw bytes, and what it says, as an
//! [`Event`] that is the same for all of them. [`Rules`] decide what becomes of an event; they do no I/O.

mod bitbucket_cloud;
mod bitbucket_server;
mod event;
mod generic;
mod gitea;
mod gitee;
mod github;
mod gitlab;
mod glob;
mod origin;
mod payload;
mod registry;
mod rules;
mod secret;
mod signature;
mod template;

use std::{collections::BTreeMap, fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

pub use self::{
    event::{Event, EventKind},
    generic::stated,
    origin::Origin,
    rules::{Decision, HookDefinition, HookName, Rules, Supersede, Tried},
    secret::{BYTES as SECRET_BYTES, HookSecret},
};
use super::spec::Invalid;

/// Who sends to a hook, and so how its deliveries are signed and what they look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Forge {
    /// github.com and GitHub Enterprise.
    Github,
    /// gitlab.com and GitLab of one's own.
    Gitlab,
    /// Gitea and Forgejo.
    Gitea,
    /// gitee.com.
    Gitee,
    /// bitbucket.org.
    BitbucketCloud,
    /// Bitbucket Data Center.
    BitbucketServer,
    /// Anybody who can sign by HMAC-SHA256.
    Generic,
    /// A registry that tells of pushed images: Distribution, Harbor, Docker Hub, Quay.
    Registry,
}

impl Forge {
    /// Every sender.
    pub const ALL: [Self; 8] = [
        Self::Github,
        Self::Gitlab,
        Self::Gitea,
        Self::Gitee,
        Self::BitbucketCloud,
        Self::BitbucketServer,
        Self::Generic,
        Self::Registry,
    ];

    /// The name as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::Gitea => "gitea",
            Self::Gitee => "gitee",
            Self::BitbucketCloud => "bitbucket_cloud",
            Self::BitbucketServer => "bitbucket_server",
            Self::Generic => "generic",
            Self::Registry => "registry",
        }
    }

    /// What it can tell of. What is `manual` is asked for by a caller of the API.
    pub const fn events(self) -> &'static [EventKind] {
        use EventKind as K;
        match self {
            Self::Github | Self::Gitlab | Self::Gitea => &[K::Push, K::Tag, K::PullRequest, K::Release, K::Manual],
            Self::Gitee | Self::BitbucketCloud | Self::BitbucketServer => &[K::Push, K::Tag, K::PullRequest, K::Manual],
            Self::Generic => &EventKind::ALL,
            Self::Registry => &[K::Image, K::Manual],
        }
    }

    fn sender(self) -> &'static dyn Sender {
        match self {
            Self::Github => &github::Github,
            Self::Gitlab => &gitlab::Gitlab,
            Self::Gitea => &gitea::Gitea,
            Self::Gitee => &gitee::Gitee,
            Self::BitbucketCloud => &bitbucket_cloud::BitbucketCloud,
            Self::BitbucketServer => &bitbucket_server::BitbucketServer,
            Self::Generic => &generic::Generic,
            Self::Registry => &registry::Registry,
        }
    }

    /// Whether the delivery comes from somebody who knows one of the secrets. All of them are tried, whichever fits.
    pub fn verify(self, secrets: &[HookSecret], incoming: &Incoming<'_>, now: DateTime<Utc>) -> bool {
        secrets.iter().fold(false, |fits, secret| {
            self.sender().verify(secret.expose(), incoming, now) | fits
        })
    }

    /// What the sender calls the delivery; the same again when it sends it again by itself.
    pub fn delivery_id(self, incoming: &Incoming<'_>) -> Option<String> {
        let id = self.sender().delivery_id(incoming)?;
        let plain = (1..=200).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        plain.then_some(id)
    }

    /// What the delivery says.
    pub fn read(self, incoming: &Incoming<'_>) -> Result<Reading, Malformed> {
        self.sender().read(incoming)
    }
}

impl fmt::Display for Forge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Forge {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|forge| forge.as_str() == text)
            .ok_or_else(|| {
                let names = Self::ALL.map(|forge| format!("`{forge}`"));
                Invalid::new(format!("expected one of {}", names.join(", ")))
            })
    }
}

/// A hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HookId(pub Uuid);

impl fmt::Display for HookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A delivery as it came, about which nothing is known yet.
#[derive(Clone, Debug, Default)]
pub struct Incoming<'b> {
    /// Headers that came once and are text, by their lower-case names.
    pub headers: BTreeMap<String, String>,
    /// What stands behind `?token=` in the address.
    pub token: Option<String>,
    /// The body.
    pub body: &'b [u8],
}

impl Incoming<'_> {
    /// A header by its lower-case name.
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What a delivery says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Something that may be built; more than one where the sender gathers them.
    Events(Vec<Event>),
    /// Nothing that could be built, for this reason.
    Nothing(String),
}

/// The delivery isn't what its sender would send.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// How one kind of sender signs and speaks.
trait Sender: Sync {
    /// Whether the delivery was made by somebody who knows the secret.
    fn verify(&self, secret: &str, incoming: &Incoming<'_>, now: DateTime<Utc>) -> bool;

    /// What the sender calls the delivery.
    fn delivery_id(&self, incoming: &Incoming<'_>) -> Option<String>;

    /// What it says.
    fn read(&self, incoming: &Incoming<'_>) -> Result<Reading, Malformed>;
}

#[cfg(test)]
mod tests;
