//! Projects own builds; tokens of a project say what their bearer may do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::{Invalid, text::checked_text};

checked_text! {
    /// A project's name: a DNS label, because it becomes a Kubernetes label value.
    ProjectName, |text| {
        let valid = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if valid {
            Ok(())
        } else {
            Err(Invalid::new("expected a project name: lower-case letters, digits and dashes, at most 63 bytes, no dash at either end"))
        }
    }
}

/// What a token may do. A scope says nothing about other projects, except `admin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    /// Read builds, events and logs of the project.
    #[serde(rename = "builds:read")]
    BuildsRead,
    /// Create and cancel builds of the project.
    #[serde(rename = "builds:write")]
    BuildsWrite,
    /// Manage the project's tokens, too.
    #[serde(rename = "project:admin")]
    ProjectAdmin,
    /// Everything in every project.
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 4] = [Self::BuildsRead, Self::BuildsWrite, Self::ProjectAdmin, Self::Admin];

    /// The scope as it stands in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BuildsRead => "builds:read",
            Self::BuildsWrite => "builds:write",
            Self::ProjectAdmin => "project:admin",
            Self::Admin => "admin",
        }
    }

    /// Whether a bearer of this scope may do what `needed` allows, within the token's own project.
    pub const fn covers(self, needed: Self) -> bool {
        match self {
            Self::Admin => true,
            Self::ProjectAdmin => !matches!(needed, Self::Admin),
            Self::BuildsWrite => matches!(needed, Self::BuildsWrite | Self::BuildsRead),
            Self::BuildsRead => matches!(needed, Self::BuildsRead),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| Invalid::new("expected builds:read, builds:write, project:admin or admin"))
    }
}
