//! Projects.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

use super::{Error, gather::Statement, rows::Place};
use crate::domain::{
    project::ProjectName,
    queue::{ProjectLimits, Weight},
    spec::Cache,
};

/// A project, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its name.
    pub name: ProjectName,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Cache of builds that say nothing about theirs.
    pub cache: Option<Cache>,
    /// Its share while several wait.
    pub weight: Weight,
    /// Its own limits.
    pub limits: ProjectLimits,
}

struct ProjectRow {
    name: String,
    created_at: DateTime<Utc>,
    cache: Option<Value>,
    weight: i32,
    concurrency_limit: Option<i32>,
    starts_limit: Option<i32>,
    queued_limit: Option<i32>,
}

impl TryFrom<ProjectRow> for Project {
    type Error = Error;

    fn try_from(row: ProjectRow) -> Result<Self, Error> {
        let place = Place {
            table: "projects",
            row: &row.name,
        };
        let limit = |column, limit: Option<i32>| limit.map(|limit| place.number(column, limit)).transpose();
        let weight = u16::try_from(row.weight)
            .ok()
            .and_then(|weight| Weight::new(weight).ok());
        Ok(Self {
            name: place.parse("name", &row.name)?,
            created_at: row.created_at,
            limits: ProjectLimits {
                concurrency: limit("concurrency_limit", row.concurrency_limit)?,
                starts_per_minute: limit("starts_limit", row.starts_limit)?,
                queued: limit("queued_limit", row.queued_limit)?,
            },
            weight: place.present("weight", weight)?,
            cache: row.cache.map(|cache| place.json("cache", cache)).transpose()?,
        })
    }
}

/// What to change of a project; `None` for what stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Its cache, or that it has none.
    pub cache: Option<Option<Cache>>,
    /// Its weight.
    pub weight: Option<Weight>,
    /// How many may be live, or that nothing of its own limits that; so the others.
    pub concurrency: Option<Option<u32>>,
    /// How many may start within a minute.
    pub starts_per_minute: Option<Option<u32>>,
    /// How many may wait.
    pub queued: Option<Option<u32>>,
}

impl Change {
    /// Whether the project's place in the queue may change by it.
    pub const fn concerns_queue(&self) -> bool {
        self.weight.is_some() || self.concurrency.is_some() || self.starts_per_minute.is_some()
    }
}

#[expect(clippy::option_option, reason = "what isn't named stays, and null is no limit")]
fn number(limit: Option<Option<u32>>) -> Option<i32> {
    // Limits are smaller than that.
    limit.flatten().map(|limit| i32::try_from(limit).unwrap_or(i32::MAX))
}

/// Makes a project; `None` when there is one of that name.
pub async fn create(pool: &PgPool, name: &ProjectName) -> Result<Option<Project>, Error> {
    create_with(pool, name, &Change::default()).await
}

/// Makes a project with a weight and limits; `None` when there is one of that name.
pub async fn create_with(pool: &PgPool, name: &ProjectName, with: &Change) -> Result<Option<Project>, Error> {
    let row = sqlx::query_as!(
        ProjectRow,
        "INSERT INTO projects (name, weight, concurrency_limit, starts_limit, queued_limit) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT DO NOTHING
         RETURNING name, created_at, cache, weight, concurrency_limit, starts_limit, queued_limit",
        name.as_str(),
        i32::from(with.weight.unwrap_or_default().get()),
        number(with.concurrency),
        number(with.starts_per_minute),
        number(with.queued),
    )
    .fetch_optional(pool)
    .await?;
    row.map(Project::try_from).transpose()
}

/// One project.
pub async fn get(pool: &PgPool, name: &ProjectName) -> Result<Option<Project>, Error> {
    let row = sqlx::query_as!(
        ProjectRow,
        "SELECT name, created_at, cache, weight, concurrency_limit, starts_limit, queued_limit
         FROM projects WHERE name = $1",
        name.as_str()
    )
    .fetch_optional(pool)
    .await?;
    row.map(Project::try_from).transpose()
}

/// What a project says of new builds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewBuilds {
    /// Cache of those that say nothing about theirs.
    pub cache: Option<Cache>,
    /// How many may wait, where as many do.
    pub full_at: Option<u32>,
}

/// What projects say of new builds, each with the limit of those that have none.
pub(super) struct OfNewBuilds;

impl Statement for OfNewBuilds {
    type Question = (ProjectName, Option<u32>);
    type Answer = NewBuilds;

    async fn ask(
        connection: &mut PgConnection,
        questions: &[(ProjectName, Option<u32>)],
    ) -> Result<Vec<NewBuilds>, Error> {
        let mut different: Vec<_> = questions.iter().map(|(name, _)| name.as_str()).collect();
        different.sort_unstable();
        different.dedup();
        // One for the whole process.
        let default = questions.first().and_then(|(_, default)| *default);
        let rows = sqlx::query!(
            r#"SELECT p.name, p.cache, own.queued AS "queued?", own.queued IS NOT NULL AND (
                   SELECT count(*) FROM (
                       SELECT FROM builds b WHERE b.project = p.name AND b.state = 'queued' LIMIT coalesce(own.queued, 0)
                   ) AS waiting
               ) >= own.queued AS "full!"
               FROM projects p CROSS JOIN LATERAL (SELECT coalesce(p.queued_limit, $2::integer) AS queued) AS own
               WHERE p.name = ANY($1) AND (p.cache IS NOT NULL OR own.queued IS NOT NULL)"#,
            &different as &[&str],
            number(Some(default)),
        )
        .fetch_all(connection)
        .await?;
        let mut found = HashMap::new();
        for row in rows {
            let place = Place {
                table: "projects",
                row: &row.name,
            };
            let said = NewBuilds {
                cache: row.cache.map(|cache| place.json("cache", cache)).transpose()?,
                full_at: match row.queued {
                    Some(limit) if row.full => Some(place.number("queued_limit", limit)?),
                    _ => None,
                },
            };
            found.insert(row.name, said);
        }
        let said = |(name, _): &(ProjectName, _)| found.get(name.as_str()).cloned().unwrap_or_default();
        Ok(questions.iter().map(said).collect())
    }
}

/// Changes a project; `None` when there is no such project.
pub async fn update(pool: &PgPool, name: &ProjectName, change: &Change) -> Result<Option<Project>, Error> {
    let cache = change.cache.as_ref().and_then(Option::as_ref);
    let row = sqlx::query_as!(
        ProjectRow,
        "UPDATE projects
         SET cache = CASE WHEN $2 THEN $3 ELSE cache END, weight = coalesce($4, weight),
             concurrency_limit = CASE WHEN $5 THEN $6 ELSE concurrency_limit END,
             starts_limit = CASE WHEN $7 THEN $8 ELSE starts_limit END,
             queued_limit = CASE WHEN $9 THEN $10 ELSE queued_limit END
         WHERE name = $1
         RETURNING name, created_at, cache, weight, concurrency_limit, starts_limit, queued_limit",
        name.as_str(),
        change.cache.is_some(),
        // References and names can't fail to serialise.
        cache.and_then(|cache| serde_json::to_value(cache).ok()),
        change.weight.map(|weight| i32::from(weight.get())),
        change.concurrency.is_some(),
        number(change.concurrency),
        change.starts_per_minute.is_some(),
        number(change.starts_per_minute),
        change.queued.is_some(),
        number(change.queued),
    )
    .fetch_optional(pool)
    .await?;
    row.map(Project::try_from).transpose()
}

/// Up to `limit` projects by name, after `after`.
pub async fn list(pool: &PgPool, after: Option<&ProjectName>, limit: u32) -> Result<Vec<Project>, Error> {
    let rows = sqlx::query_as!(
        ProjectRow,
        "SELECT name, created_at, cache, weight, concurrency_limit, starts_limit, queued_limit
         FROM projects WHERE name > $1 ORDER BY name LIMIT $2",
        after.map_or("", ProjectName::as_str),
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(Project::try_from).collect()
}
