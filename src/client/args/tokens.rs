//! Flags of `kiln token`, and what they ask of a service.

use clap::Args;
use uuid::Uuid;

use super::Common;
use crate::domain::project::Scope;

/// `kiln token delete`.
#[derive(Clone, Debug, Args)]
pub struct TokenDelete {
    /// The token's id, as `kiln token list` shows it
    #[arg(value_name = "ID")]
    pub id: Uuid,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

/// A token to be made.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// What it is for.
    pub name: String,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// Days until it stops working.
    pub expires_in_days: Option<u32>,
}
