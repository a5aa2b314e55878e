//! Projects.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

use super::{Error, gather::Statement, rows::Place};
use crate::domain::{project::ProjectName, spec::Cache};

/// A project, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its name.
    pub name: ProjectName,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Cache of builds that say nothing about theirs.
    pub cache: Option<Cache>,
}

fn project(name: &str, created_at: DateTime<Utc>, cache: Option<Value>) -> Result<Project, Error> {
    let place = Place {
        table: "projects",
        row: &name,
    };
    Ok(Project {
        name: place.parse("name", name)?,
        created_at,
        cache: cache.map(|cache| place.json("cache", cache)).transpose()?,
    })
}

/// Makes a project; `None` when there is one of that name.
pub async fn create(pool: &PgPool, name: &ProjectName) -> Result<Option<Project>, Error> {
    let row = sqlx::query!(
        "INSERT INTO projects (name) VALUES ($1) ON CONFLICT DO NOTHING RETURNING name, created_at, cache",
        name.as_str(),
    )
    .fetch_optional(pool)
    .await?;
    row.map(|row| project(&row.name, row.created_at, row.cache)).transpose()
}

/// One project.
pub async fn get(pool: &PgPool, name: &ProjectName) -> Result<Option<Project>, Error> {
    let row = sqlx::query!(
        "SELECT name, created_at, cache FROM projects WHERE name = $1",
        name.as_str()
    )
    .fetch_optional(pool)
    .await?;
    row.map(|row| project(&row.name, row.created_at, row.cache)).transpose()
}

/// Caches of builds that say nothing about theirs, by project; `None` where there is none.
pub(super) struct CacheOf;

impl Statement for CacheOf {
    type Question = ProjectName;
    type Answer = Option<Cache>;

    async fn ask(connection: &mut PgConnection, names: &[ProjectName]) -> Result<Vec<Option<Cache>>, Error> {
        let mut different: Vec<_> = names.iter().map(ProjectName::as_str).collect();
        different.sort_unstable();
        different.dedup();
        let rows = sqlx::query!(
            r#"SELECT name, cache AS "cache!" FROM projects WHERE name = ANY($1) AND cache IS NOT NULL"#,
            &different as &[&str],
        )
        .fetch_all(connection)
        .await?;
        let mut caches = HashMap::new();
        for row in rows {
            let place = Place {
                table: "projects",
                row: &row.name,
            };
            let cache: Cache = place.json("cache", row.cache)?;
            caches.insert(row.name, cache);
        }
        Ok(names.iter().map(|name| caches.get(name.as_str()).cloned()).collect())
    }
}

/// Changes a project's cache; `None` when there is no such project.
pub async fn set_cache(pool: &PgPool, name: &ProjectName, cache: Option<&Cache>) -> Result<Option<Project>, Error> {
    let row = sqlx::query!(
        "UPDATE projects SET cache = $2 WHERE name = $1 RETURNING name, created_at, cache",
        name.as_str(),
        // References and names can't fail to serialise.
        cache.and_then(|cache| serde_json::to_value(cache).ok()),
    )
    .fetch_optional(pool)
    .await?;
    row.map(|row| project(&row.name, row.created_at, row.cache)).transpose()
}

/// Up to `limit` projects by name, after `after`.
pub async fn list(pool: &PgPool, after: Option<&ProjectName>, limit: u32) -> Result<Vec<Project>, Error> {
    let rows = sqlx::query!(
        "SELECT name, created_at, cache FROM projects WHERE name > $1 ORDER BY name LIMIT $2",
        after.map_or("", ProjectName::as_str),
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| project(&row.name, row.created_at, row.cache))
        .collect()
}
