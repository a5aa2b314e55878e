//! Searching builds, newest first. What drives a search is always an index that has the builds in that order already,
//! so that a page costs the same whatever the number of builds; `tests/api/builds/plans.rs` reads the plans.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{Error, builds::attempts_of, rows::BuildRow};
use crate::domain::{build::Build, id::BuildId, project::ProjectName, state::StateName, term::Term};

/// Which builds to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only this project's.
    pub project: Option<ProjectName>,
    /// Only those in one of these states; in any when empty.
    pub states: Vec<StateName>,
    /// Only those that have all of these terms.
    pub terms: Vec<Term>,
    /// Only those that were accepted after this.
    pub created_after: Option<DateTime<Utc>>,
    /// Only those that were accepted before this.
    pub created_before: Option<DateTime<Utc>>,
}

/// An id holds the time of its making, which is a moment before or after the time of acceptance that is stored beside
/// it. The ids bound what is read of an index; the stored times decide.
const SLACK: TimeDelta = TimeDelta::seconds(10);

/// The least id that could have been made at this time.
fn least_id(at: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(at.timestamp_millis()).unwrap_or(0).min((1 << 48) - 1);
    Uuid::from_u128(u128::from(millis) << 80)
}

/// What the statements have in common.
struct Bounds {
    before: Uuid,
    from: Uuid,
    states: Option<Vec<String>>,
    limit: i64,
}

/// Up to `limit` builds, newest first, that are older than `before`.
pub async fn list(pool: &PgPool, filter: &Filter, before: Option<BuildId>, limit: u32) -> Result<Vec<Build>, Error> {
    let latest = filter.created_before.map_or(Uuid::max(), |at| least_id(at + SLACK));
    let states = filter.states.iter().map(ToString::to_string).collect::<Vec<_>>();
    let bounds = Bounds {
        before: before.map_or(latest, |BuildId(id)| id.min(latest)),
        from: filter.created_after.map_or(Uuid::nil(), |at| least_id(at - SLACK)),
        states: (!states.is_empty()).then_some(states),
        limit: limit.into(),
    };
    let mut connection = pool.acquire().await?;
    let ids = match (&filter.terms[..], &bounds.states, &filter.project) {
        ([first, others @ ..], ..) => by_term(&mut connection, filter, &bounds, first, others).await?,
        ([], Some(states), _) => by_state(&mut connection, filter, &bounds, states).await?,
        ([], None, Some(project)) => of_project(&mut connection, filter, &bounds, project).await?,
        ([], None, None) => all(&mut connection, filter, &bounds).await?,
    };
    let rows = sqlx::query_as!(
        BuildRow,
        "SELECT id, project, state, spec, attempts, available_at, commit, digest, failure_code, failure_message,
                created_at, started_at, finished_at, journal_head, retry_of, superseded_by, log_bytes, origin,
                (SELECT r.id FROM builds r WHERE r.retry_of = builds.id ORDER BY r.id DESC LIMIT 1) AS retried_by
         FROM builds WHERE id = ANY($1) ORDER BY id DESC",
        &ids,
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut attempts = attempts_of(&mut connection, &ids).await?;
    rows.into_iter()
        .map(|row| {
            let attempts = attempts.remove(&BuildId(row.id)).unwrap_or_default();
            row.into_build(attempts)
        })
        .collect()
}

async fn all(connection: &mut PgConnection, filter: &Filter, bounds: &Bounds) -> Result<Vec<Uuid>, Error> {
    let ids = sqlx::query_scalar!(
        "SELECT id FROM builds
         WHERE id < $1 AND id >= $2
           AND ($3::timestamptz IS NULL OR created_at > $3) AND ($4::timestamptz IS NULL OR created_at < $4)
         ORDER BY id DESC LIMIT $5",
        bounds.before,
        bounds.from,
        filter.created_after,
        filter.created_before,
        bounds.limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(ids)
}

async fn of_project(
    connection: &mut PgConnection,
    filter: &Filter,
    bounds: &Bounds,
    project: &ProjectName,
) -> Result<Vec<Uuid>, Error> {
    let ids = sqlx::query_scalar!(
        "SELECT id FROM builds
         WHERE project = $1 AND uuid_send(id) < uuid_send($2) AND uuid_send(id) >= uuid_send($3)
           AND ($4::timestamptz IS NULL OR created_at > $4) AND ($5::timestamptz IS NULL OR created_at < $5)
         ORDER BY uuid_send(id) DESC LIMIT $6",
        project.as_str(),
        bounds.before,
        bounds.from,
        filter.created_after,
        filter.created_before,
        bounds.limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(ids)
}

/// The newest of each project and state, merged.
async fn by_state(
    connection: &mut PgConnection,
    filter: &Filter,
    bounds: &Bounds,
    states: &[String],
) -> Result<Vec<Uuid>, Error> {
    let ids = sqlx::query_scalar!(
        r#"SELECT found.id AS "id!"
           FROM projects p
           CROSS JOIN unnest($2::text[]) AS s (state)
           CROSS JOIN LATERAL (
               SELECT b.id FROM builds b
               WHERE b.project = p.name AND b.state = s.state
                 AND uuid_send(b.id) < uuid_send($3) AND uuid_send(b.id) >= uuid_send($4)
                 AND ($5::timestamptz IS NULL OR b.created_at > $5)
                 AND ($6::timestamptz IS NULL OR b.created_at < $6)
               ORDER BY uuid_send(b.id) DESC LIMIT $7
           ) AS found
           WHERE $1::text IS NULL OR p.name = $1
           ORDER BY found.id DESC LIMIT $7"#,
        filter.project.as_ref().map(ProjectName::as_str),
        states,
        bounds.before,
        bounds.from,
        filter.created_after,
        filter.created_before,
        bounds.limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(ids)
}

/// The newest of each project that have the first term, as far as they have the others, merged.
async fn by_term(
    connection: &mut PgConnection,
    filter: &Filter,
    bounds: &Bounds,
    first: &Term,
    others: &[Term],
) -> Result<Vec<Uuid>, Error> {
    let others: Vec<_> = others.iter().map(|term| term.as_str().to_owned()).collect();
    let ids = sqlx::query_scalar!(
        r#"SELECT found.id AS "id!"
           FROM projects p
           CROSS JOIN LATERAL (
               SELECT t.build_id AS id
               FROM build_terms t
               CROSS JOIN LATERAL (SELECT state, created_at FROM builds WHERE id = t.build_id OFFSET 0) b
               WHERE t.project = p.name AND t.term = $2 AND t.build_id < $3 AND t.build_id >= $4
                 AND ($5::timestamptz IS NULL OR b.created_at > $5)
                 AND ($6::timestamptz IS NULL OR b.created_at < $6)
                 AND ($7::text[] IS NULL OR b.state = ANY($7))
                 AND NOT EXISTS (
                     SELECT FROM unnest($8::text[]) AS other (term)
                     WHERE NOT EXISTS (
                         SELECT FROM build_terms o
                         WHERE o.project = p.name AND o.term = other.term AND o.build_id = t.build_id
                         OFFSET 0
                     )
                     OFFSET 0
                 )
               ORDER BY t.build_id DESC LIMIT $9
           ) AS found
           WHERE $1::text IS NULL OR p.name = $1
           ORDER BY found.id DESC LIMIT $9"#,
        filter.project.as_ref().map(ProjectName::as_str),
        first.as_str(),
        bounds.before,
        bounds.from,
        filter.created_after,
        filter.created_before,
        bounds.states.as_deref(),
        &others,
        bounds.limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_made_at_a_time_lie_behind_the_least_id_of_that_time() {
        let before = Utc::now();
        let id = BuildId::new().0;
        assert!(least_id(before) <= id);
        assert!(id < least_id(Utc::now() + TimeDelta::milliseconds(1)));
        assert_eq!(least_id(DateTime::<Utc>::MIN_UTC), Uuid::nil());
    }
}
