//! `GET /v1/builds/{id}/queue`.

use axum::{Json, extract::State};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    domain::{
        build::{Build, Pending, PendingKind},
        state::{BuildState, StateName},
    },
    http::{auth::ReadableBuild, error::ApiError, problem::Problem, state::App},
    store::waiting::{self, History, Queue},
};

/// Where a build stands in the queue, and what it waits for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BuildQueue)]
pub(in crate::http) struct QueueView {
    /// Where the build stands.
    state: StateName,
    /// Its place; null unless it is queued.
    position: Option<Position>,
    /// What keeps it from going on; null when nothing does.
    blocked_by: Option<Block>,
    /// When it can be expected to run and to end; null when the build is over, or when there is no history.
    estimate: Option<Estimate>,
}

/// A place in the queue; 1 is next.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
struct Position {
    /// Among the queued builds of its project.
    project: i64,
    /// Among all queued builds.
    all: i64,
}

/// What keeps a build from going on.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
struct Block {
    /// What it is, for programs. Others may be added.
    kind: BlockKind,
    /// The same in words, with those of the cluster where it has said anything.
    message: String,
}

/// Kinds of things that a build can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BlockKind {
    /// As many builds as the installation allows are running.
    Limit,
    /// Another build of its group, whose builds run one after the other.
    Group,
    /// As many builds of the project are running as it may have.
    ProjectLimit,
    /// As many builds of the project have begun within a minute as may.
    RateLimit,
    /// No worker runs.
    NoWorker,
    /// The cluster, or the host of the local runner, can't be used.
    Cluster,
    /// An attempt has failed; the next one comes after a pause.
    Backoff,
    /// No node takes the pod.
    Unscheduled,
    /// An image that the pod needs can't be pulled.
    ImagePull,
    /// The pod's containers can't be made.
    Starting,
}

/// What can be expected.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
struct Estimate {
    /// When it will run; null when that can't be said, or when it runs.
    starts_at: Option<DateTime<Utc>>,
    /// When it will end; null when that can't be said.
    ends_at: Option<DateTime<Utc>>,
    /// What the estimate rests on.
    basis: Basis,
}

/// Builds of the same project that have succeeded lately.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
struct Basis {
    /// How many; at most 20.
    builds: i64,
    /// Median of the seconds from acceptance until they ran.
    median_wait_seconds: f64,
    /// Median of the seconds that they ran.
    median_run_seconds: f64,
}

/// See where a build stands in the queue, what it waits for, and when it can be expected.
#[utoipa::path(
    get, path = "/v1/builds/{id}/queue", tag = "builds", operation_id = "getQueue",
    params(("id" = Uuid, Path, description = "The build")),
    responses(
        (status = 200, description = "What it waits for", body = QueueView),
        (status = 404, description = "No such build for this token", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The build was deleted, because it had been kept for long enough", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn queue(
    State(app): State<App>,
    ReadableBuild(build): ReadableBuild,
) -> Result<Json<QueueView>, ApiError> {
    let state = build.state.name();
    let now = app.clock.now();
    let queue = match state {
        StateName::Queued => Some(waiting::queue(&app.pool, &build, app.queue.project_limits).await?),
        _ => None,
    };
    let pending = match state {
        StateName::Starting | StateName::Running => waiting::pending(&app.pool, build.id).await?,
        _ => None,
    };
    let limit = i64::from(app.max_live_builds);
    let blocked_by = block(&build, queue.as_ref(), pending, limit, now);
    let estimate = if state.is_terminal() {
        None
    } else {
        let history = waiting::history(&app.pool, &build.project).await?;
        history.map(|history| estimate(&build, queue.as_ref(), blocked_by.as_ref(), history, limit, now))
    };
    Ok(Json(QueueView {
        state,
        position: queue.map(|queue| Position {
            project: queue.ahead_in_project + 1,
            all: queue.ahead + 1,
        }),
        blocked_by,
        estimate,
    }))
}

/// What keeps the build from going on. Of several things the one that would have to go first.
fn block(
    build: &Build,
    queue: Option<&Queue>,
    pending: Option<Pending>,
    limit: i64,
    now: DateTime<Utc>,
) -> Option<Block> {
    let block = |kind, message: String| Some(Block { kind, message });
    if let Some(Pending { kind, message }) = pending {
        let kind = match kind {
            PendingKind::Unscheduled => BlockKind::Unscheduled,
            PendingKind::ImagePull => BlockKind::ImagePull,
            PendingKind::Starting => BlockKind::Starting,
        };
        return block(kind, message);
    }
    let (BuildState::Queued { available_at, .. }, Some(queue)) = (&build.state, queue) else {
        return None;
    };
    if queue.workers == 0 {
        return block(
            BlockKind::NoWorker,
            "no worker runs: the operator has to start one".to_owned(),
        );
    }
    if queue.ready_workers == 0 {
        let reason = queue.not_ready.as_deref().unwrap_or("no reason was given");
        return block(BlockKind::Cluster, format!("no build can be launched: {reason}"));
    }
    if *available_at > now {
        let failure = build.attempts.last().and_then(|attempt| attempt.failure.as_ref());
        let failure = failure.map_or(String::new(), |failure| format!(" ({})", failure.code));
        return block(
            BlockKind::Backoff,
            format!(
                "the last attempt failed{failure}; the next one comes after {}",
                available_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
            ),
        );
    }
    if let Some(other) = queue.group_blocker {
        return block(
            BlockKind::Group,
            format!("build {other} of the same group comes first; they run one after the other"),
        );
    }
    if let Some(most) = queue.concurrency.filter(|most| queue.live_in_project >= *most) {
        return block(
            BlockKind::ProjectLimit,
            match queue.live_in_project {
                0 => "the project's builds are held back: it may have none running".to_owned(),
                1 => format!("a build of the project is running, and it may have {most} at a time"),
                live => format!("{live} builds of the project are running, and it may have {most} at a time"),
            },
        );
    }
    if let (Some(most), Some(opens_at)) = (queue.starts_per_minute, queue.opens_at.filter(|opens| *opens > now)) {
        return block(
            BlockKind::RateLimit,
            format!(
                "{most} builds of the project may begin within a minute; the next one can at {}",
                opens_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
            ),
        );
    }
    if queue.live >= limit {
        return block(
            BlockKind::Limit,
            match queue.live {
                1 => "a build is running, which is as many as this installation allows".to_owned(),
                live => format!("{live} builds are running, which is as many as this installation allows"),
            },
        );
    }
    None
}

/// How often so many places have to come free for the one behind `ahead` others.
fn turns(ahead: i64, places: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "no queue is that long")]
    let turns = (ahead + 1) as f64 / places.max(1) as f64;
    turns
}

fn estimate(
    build: &Build,
    queue: Option<&Queue>,
    blocked_by: Option<&Block>,
    history: History,
    limit: i64,
    now: DateTime<Utc>,
) -> Estimate {
    let after = |start: DateTime<Utc>, seconds: f64| {
        // Medians of what has happened are small; what doesn't fit would be an age away.
        #[expect(clippy::cast_possible_truncation, reason = "saturates")]
        let length = TimeDelta::milliseconds((seconds * 1e3) as i64);
        start.checked_add_signed(length).unwrap_or(start).max(now)
    };
    let starts_at = match (&build.state, blocked_by.map(|block| block.kind)) {
        (BuildState::Queued { .. } | BuildState::Starting { .. }, None) => Some(after(build.created_at, history.wait)),
        (BuildState::Queued { available_at, .. }, Some(BlockKind::Backoff)) => Some(after(*available_at, history.wait)),
        // Room comes as builds end: so many at a time, one run after the other.
        (BuildState::Queued { .. }, Some(BlockKind::Limit)) => {
            queue.map(|queue| after(now, turns(queue.ahead, limit) * history.run))
        }
        (BuildState::Queued { .. }, Some(BlockKind::ProjectLimit)) => queue
            .and_then(|queue| Some((queue, queue.concurrency.filter(|most| *most > 0)?)))
            .map(|(queue, most)| after(now, turns(queue.ahead_in_project, most) * history.run)),
        // So many begin in each minute from then on.
        (BuildState::Queued { .. }, Some(BlockKind::RateLimit)) => queue
            .and_then(|queue| Some((queue, queue.starts_per_minute?, queue.opens_at?)))
            .map(|(queue, most, opens_at)| after(opens_at, turns(queue.ahead_in_project - 1, most).floor() * 60.0)),
        _ => None,
    };
    let ends_at = match &build.state {
        BuildState::Running { started_at, .. } => Some(after(*started_at, history.run)),
        _ => starts_at.map(|start| after(start, history.run)),
    };
    Estimate {
        starts_at,
        ends_at,
        basis: Basis {
            builds: history.builds,
            median_wait_seconds: history.wait,
            median_run_seconds: history.run,
        },
    }
}
