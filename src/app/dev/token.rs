//! The token of `kiln dev`, kept in the data folder, so that the lines once noted work after a restart.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    domain::project::{ProjectName, Scope},
    http::{Random, token::BearerToken},
    store::{self, tokens::NewToken},
};

/// The project that the token belongs to, and builds that name none.
const PROJECT: &str = "default";

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The database said no.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It can't be kept.
    #[error("can't keep it in the data folder: {0}")]
    Io(#[from] io::Error),
}

/// The token in `data/token`, if the database knows it; otherwise a new one.
pub(super) async fn ensure(pool: &PgPool, data: &Path) -> Result<BearerToken, TokenError> {
    let file = data.join("token");
    let kept = fs::read_to_string(&file)
        .ok()
        .and_then(|text| BearerToken::parse(text.trim()));
    if let Some(token) = kept
        && store::tokens::by_hash(pool, &token.hash()).await?.is_some()
    {
        return Ok(token);
    }
    // A constant that is valid, as the test shows.
    let project: ProjectName = PROJECT.parse().map_err(io::Error::other)?;
    store::projects::create(pool, &project).await?;
    let token = BearerToken::from_random(Random::system().bytes());
    let new = NewToken {
        id: Uuid::now_v7(),
        project,
        name: "kiln dev".to_owned(),
        hash: token.hash(),
        scopes: vec![Scope::Admin],
        expires_at: None,
    };
    store::tokens::create(pool, new).await?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)?;
    writeln!(file, "{}", token.expose())?;
    Ok(token)
}
