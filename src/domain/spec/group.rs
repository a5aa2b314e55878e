//! What a build has to do with others of the same key.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Invalid,
    reader::{Field, Reported},
    text::checked_text,
};

checked_text! {
    /// What the builds of a group have in common, such as a repository and a branch.
    GroupKey, |text| {
        let valid = (1..=200).contains(&text.chars().count())
            && text.trim() == text
            && !text.chars().any(char::is_control);
        if valid {
            Ok(())
        } else {
            Err(Invalid::new(
                "expected a key such as `app/main`: 1 to 200 characters on one line, without white space around them",
            ))
        }
    }
}

/// A group: builds of the same key in the same project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = BuildGroup)]
pub struct Group {
    /// What they have in common.
    pub key: GroupKey,
    /// Which older builds of the group are cancelled for this one.
    pub supersede: Supersede,
    /// Whether it waits until no other build of the group is live.
    #[serde(default)]
    pub serialize: bool,
}

/// Which older builds of its group a new one takes the place of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Supersede {
    /// None.
    #[default]
    No,
    /// Those that wait in the queue.
    Queued,
    /// Those that wait, and those that have begun.
    Running,
}

impl Supersede {
    /// Every choice, by its name.
    pub const ALL: [(&'static str, Self); 3] = [("no", Self::No), ("queued", Self::Queued), ("running", Self::Running)];
}

/// Reads the `group` of a request.
pub(super) fn read(field: &Field<'_>) -> Result<Option<Group>, Reported> {
    if field.value().is_none() {
        return Ok(None);
    }
    let group = field.object()?;
    let key = group.field("key").required();
    let supersede = group.field("supersede").one_of(&Supersede::ALL);
    let serialize = group.field("serialize").boolean();
    group.finish();
    Ok(Some(Group {
        key: key?,
        supersede: supersede?.unwrap_or_default(),
        serialize: serialize?.unwrap_or(false),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_line() {
        for good in ["app/main", "a", "a b", "é", &"x".repeat(200)] {
            assert!(good.parse::<GroupKey>().is_ok(), "{good:?}");
        }
        for bad in ["", " ", " a", "a\n", "a\nb", "a\0", &"x".repeat(201)] {
            assert!(bad.parse::<GroupKey>().is_err(), "{bad:?}");
        }
    }
}
