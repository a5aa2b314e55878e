//! Nodes as far as builds care: which of them fail attempts, and which are better avoided.

use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{failure::FailureCode, spec::Invalid};

/// A node's name: a DNS subdomain, as Kubernetes wants it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NodeName(String);

impl NodeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if text.is_empty() || text.len() > 253 || !text.chars().all(known) {
            return Err(Invalid::new(
                "expected the name of a node: lower-case letters, digits, `-` and `.`, at most 253",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Nodes that an attempt is better not sent to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AvoidedNodes {
    /// Not under any circumstances: where earlier attempts of the build failed.
    pub never: Vec<String>,
    /// Only where there is no other: those that have failed several builds lately.
    pub rather_not: Vec<String>,
}

impl AvoidedNodes {
    /// The same, so that no node is out of the question.
    #[must_use]
    pub fn relaxed(self) -> Self {
        let mut rather_not = self.never;
        rather_not.extend(self.rather_not);
        rather_not.sort();
        rather_not.dedup();
        Self {
            never: Vec::new(),
            rather_not,
        }
    }
}

/// When a node is avoided, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvoidPolicy {
    /// So many failures of a node …
    pub failures: u32,
    /// … within this time …
    pub within: TimeDelta,
    /// … make it avoided for this long after the last of them.
    pub lasts: TimeDelta,
}

impl AvoidPolicy {
    /// How long a failure is of interest.
    pub fn memory(&self) -> TimeDelta {
        self.within.max(self.lasts)
    }
}

/// A node that has failed attempts lately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultyNode {
    /// Its name.
    pub name: String,
    /// Until when builds are sent elsewhere; absent when they aren't.
    pub avoided_until: Option<DateTime<Utc>>,
    /// Its latest failures, oldest first.
    pub failures: Vec<NodeFailure>,
}

/// A failure of an attempt that its node is to blame for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeFailure {
    /// The build.
    pub build: uuid::Uuid,
    /// The attempt's number.
    pub attempt: u32,
    /// What the attempt failed with.
    pub code: FailureCode,
    /// The same in words.
    pub message: String,
    /// When it was recorded.
    pub at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kubernetes() {
        for good in ["node1", "ip-10-0-0-1.eu.compute.internal", "a"] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        for bad in ["", "Node", "a b", "a/b", &"x".repeat(254)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn relaxed_nothing_is_out_of_the_question() {
        let avoided = AvoidedNodes {
            never: vec!["b".to_owned(), "a".to_owned()],
            rather_not: vec!["a".to_owned(), "c".to_owned()],
        };
        let relaxed = avoided.relaxed();
        assert_eq!(relaxed.never, [""; 0]);
        assert_eq!(relaxed.rather_not, ["a", "b", "c"]);
    }
}
