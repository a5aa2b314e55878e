//! Tokens for callers, as an operator would make them.

use chrono::{DateTime, Utc};
use kiln::{
    domain::project::Scope,
    http::{Random, token::BearerToken},
    store::{
        projects,
        tokens::{self, NewToken},
    },
};
use sqlx::PgPool;
use uuid::Uuid;

/// Stores a token of a project, which is made if it isn't there.
pub(crate) async fn token(pool: &PgPool, project: &str, scope: Scope, expires_at: Option<DateTime<Utc>>) -> String {
    let project = project.parse().expect("a name");
    projects::create(pool, &project).await.expect("stores");
    let token = BearerToken::from_random(Random::system().bytes());
    let new = NewToken {
        id: Uuid::now_v7(),
        project,
        name: "test".to_owned(),
        hash: token.hash(),
        scopes: vec![scope],
        expires_at,
    };
    tokens::create(pool, new)
        .await
        .expect("stores")
        .expect("the project exists");
    token.expose().to_owned()
}
