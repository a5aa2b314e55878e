//! Whether what was built before makes what is built now any slower.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use chrono::Utc;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{Bench, build, kubelet::Role, setting::setting, stats::quantile, sustained::keep_busy, table::Table};

const RATE: u32 = 20;

/// Builds as they are when they are over: with attempts, journals and what they are found by. Spread over the days past.
const FILL: &str = r#"
    WITH times AS MATERIALIZED (
        SELECT n, now() - make_interval(secs => 60 + n * 1728000.0 / $1) AS at FROM generate_series(1, $1) AS n
    ), ids AS MATERIALIZED (
        -- The time of an id of version 7, and noise.
        SELECT (substr(build_id_at(at)::text, 1, 14) || '7' || substr(md5(n::text), 1, 3) || '-8' || substr(md5(n::text), 4, 3)
                || '-' || substr(md5(n::text), 7, 12))::uuid AS id, at, n
        FROM times
    ), build AS (
        INSERT INTO builds (id, project, state, spec, priority, attempts, epoch, created_at, started_at, finished_at,
                            journal_head, log_bytes)
        SELECT id, 'default', 'succeeded', $2::jsonb, 0, 1, 1, at, at, at + interval '40 seconds', 103, 9500 FROM ids
    ), attempt AS (
        INSERT INTO attempts (build_id, number, state, pod, resources, created_at, started_at, finished_at)
        SELECT id, 1, 'succeeded', 'kiln-' || id || '-1', '{"cpu": "1", "memory": "1Gi", "disk": "1Gi"}', at, at,
               at + interval '40 seconds'
        FROM ids
    ), term AS (
        INSERT INTO build_terms (project, term, build_id)
        SELECT 'default', term, id FROM ids, unnest(ARRAY['registry.example.com/team/app:' || n % 1000, 'registry.example.com/team/app']) AS term
    )
    INSERT INTO journal (build_id, first_seq, last_seq, codec, body)
    SELECT id, 1, 103, 0, convert_to(repeat('x', 600), 'UTF8') FROM ids
"#;

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<()> {
    let sizes: String = setting("KILN_BENCH_HISTORY", "1000,100000".to_owned())?;
    let seconds: u32 = setting("KILN_BENCH_HISTORY_SECONDS", 20)?;
    let mut table = Table::new([
        "builds before",
        "POST → answer, p50 ms",
        "p99 ms",
        "POST → pod, p50 ms",
        "p99 ms",
        "list of 50, p50 ms",
        "p99 ms",
        "whole builds per minute",
    ]);
    for size in sizes.split(',') {
        let size: i64 = size
            .trim()
            .parse()
            .with_context(|| format!("KILN_BENCH_HISTORY={sizes}"))?;
        fill(bench, size).await?;
        let server = bench.serve().await?;
        let kubelet = bench.kubelet(&server, Role::Succeed).await?;
        let caller = bench.caller(&server);
        // Connections are there before the first one counts.
        caller.post(&build()).await?;

        let (mut posts, mut lists) = (JoinSet::new(), JoinSet::new());
        let mut ticks = interval(Duration::from_secs(1) / RATE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0..RATE * seconds {
            ticks.tick().await;
            let by = caller.clone();
            posts.spawn(async move {
                let posted = Utc::now();
                let id = by.post(&build()).await?;
                anyhow::Ok((id, posted, ms_since(posted)))
            });
            if number % 4 == 0 {
                let caller = caller.clone();
                lists.spawn(async move {
                    let begun = Instant::now();
                    let list = caller.http.get(format!("{}/v1/builds?limit=50", caller.base));
                    list.bearer_auth(&caller.token)
                        .send()
                        .await?
                        .error_for_status()?
                        .bytes()
                        .await?;
                    anyhow::Ok(begun.elapsed().as_secs_f64() * 1e3)
                });
            }
        }
        let posts: Vec<_> = posts.join_all().await.into_iter().collect::<Result<_, _>>()?;
        let lists: Vec<f64> = lists.join_all().await.into_iter().collect::<Result<_, _>>()?;
        bench.settle().await?;
        kubelet.check()?;
        let created = kubelet.created();
        let pods: Vec<f64> = posts
            .iter()
            .map(|(id, posted, _)| {
                let at = created.get(&format!("kiln-{id}-1")).context("a build without a pod")?;
                anyhow::Ok((*at - *posted).as_seconds_f64() * 1e3)
            })
            .collect::<Result<_, _>>()?;
        let answers: Vec<f64> = posts.iter().map(|(_, _, answered)| *answered).collect();
        let per_minute = keep_busy(bench, &caller, &kubelet, Duration::from_secs(seconds.into())).await?;
        bench.settle().await?;
        drop((kubelet, server));
        bench.clear().await?;
        let at = |values: &[f64], q| format!("{:.1}", quantile(values, q));
        table.row([
            size.to_string(),
            at(&answers, 0.5),
            at(&answers, 0.99),
            at(&pods, 0.5),
            at(&pods, 0.99),
            at(&lists, 0.5),
            at(&lists, 0.99),
            format!("{per_minute:.0}"),
        ]);
    }
    println!(
        "{RATE} requests per second for {seconds} s, and then as many builds as go through, after so many builds:\n"
    );
    println!("{table}");
    Ok(())
}

fn ms_since(then: chrono::DateTime<Utc>) -> f64 {
    (Utc::now() - then).as_seconds_f64() * 1e3
}

async fn fill(bench: &Bench, size: i64) -> anyhow::Result<()> {
    sqlx::query(FILL)
        .bind(size)
        .bind(&bench.spec)
        .execute(&bench.pool)
        .await?;
    // What a database that got here in a month would have behind it.
    sqlx::raw_sql("VACUUM ANALYZE").execute(&bench.pool).await?;
    Ok(())
}
