//! What the commands do.

use chrono::Utc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    cli::{Role, Serve, TokenCreate},
    config::Config,
    serve::{ServeError, Service, asked_to_end, open_database},
};
use crate::{
    http::{Random, token::BearerToken},
    store::{self, tokens::NewToken},
};

/// Why a command failed, in words for the person who gave it.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The service could not run.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The database said no.
    #[error("{doing}: {error}{}", cause(.error))]
    Store {
        /// What was tried.
        doing: &'static str,
        /// What came back.
        error: store::Error,
    },
    /// The schema can't be brought up to date.
    #[error("the schema can't be brought up to date: {0}. Is the database there? It is set by KILN_DATABASE_URL.")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map(|cause| format!(": {cause}")).unwrap_or_default()
}

/// `kiln serve`.
pub async fn serve(config: Config, flags: &Serve) -> Result<(), CommandError> {
    let pool = open_database(&config)?;
    if flags.migrate {
        store::migrate(&pool).await?;
    }
    let shutdown = CancellationToken::new();
    let on_signal = shutdown.clone();
    tokio::spawn(async move {
        asked_to_end().await;
        on_signal.cancel();
    });
    let service = Service::new(config, pool, shutdown.clone());
    finish(service, flags).await
}

async fn finish(service: Service, flags: &Serve) -> Result<(), CommandError> {
    let service = if flags.roles.contains(&Role::Api) {
        let (service, address) = service.with_api().await?;
        tracing::info!(address = %address, "serving");
        service
    } else {
        service
    };
    Ok(service.run().await?)
}

/// `kiln migrate`.
pub async fn migrate(config: &Config) -> Result<(), CommandError> {
    let pool = open_database(config)?;
    store::migrate(&pool).await?;
    Ok(())
}

/// `kiln token create`: prints the token and nothing else, so that scripts can take it.
pub async fn create_token(config: &Config, flags: &TokenCreate) -> Result<String, CommandError> {
    let failed = |error| CommandError::Store {
        doing: "the token can't be made",
        error,
    };
    let pool = open_database(config)?;
    store::projects::create(&pool, &flags.project).await.map_err(failed)?;
    let token = BearerToken::from_random(Random::system().bytes());
    let expires_at = flags
        .expires_in_days
        .map(|days| Utc::now() + chrono::TimeDelta::days(days.into()));
    let new = NewToken {
        id: Uuid::now_v7(),
        project: flags.project.clone(),
        name: flags.name.clone(),
        hash: token.hash(),
        scopes: flags.scopes.clone(),
        expires_at,
    };
    store::tokens::create(&pool, new).await.map_err(failed)?;
    Ok(token.expose().to_owned())
}
