//! A database for one benchmark, on the server that `DATABASE_URL` names.

use anyhow::Context as _;
use sqlx::{Connection as _, PgConnection};
use url::Url;

use super::setting::required;

/// An empty database, dropped by [`Database::drop_it`].
pub(crate) struct Database {
    name: String,
    server: String,
    /// How to connect to it.
    pub(crate) url: Url,
}

impl Database {
    pub(crate) async fn create(name: &str) -> anyhow::Result<Self> {
        let server = required("DATABASE_URL", "a Postgres to measure on, as its superuser")?;
        let mut url: Url = server.parse().context("DATABASE_URL")?;
        url.set_path(name);
        let database = Self {
            name: name.to_owned(),
            server,
            url,
        };
        database
            .on_server(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            .await?;
        database.on_server(&format!("CREATE DATABASE {name}")).await?;
        Ok(database)
    }

    /// Runs a statement outside of the database.
    pub(crate) async fn on_server(&self, statement: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.server).await?;
        // The statements are this program's own.
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .with_context(|| statement.to_owned())?;
        Ok(connection.close().await?)
    }

    /// Drops it, whoever is connected.
    pub(crate) async fn drop_it(self) -> anyhow::Result<()> {
        self.on_server(&format!("DROP DATABASE {} WITH (FORCE)", self.name))
            .await
    }
}
