//! What one build costs: statements at Postgres, and calls of the Kubernetes API.

use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use sqlx::PgPool;

use crate::{Bench, build, cluster::client, kubelet::Role, proxy::Proxy, setting::setting, table::Table};

/// How long Kiln is watched with nothing to do.
const IDLE: Duration = Duration::from_secs(10);
/// Statements and calls below this number for each build aren't shown one by one.
const SHOWN: f64 = 0.05;

/// Statements of Kiln's since the last reset: how often, and the beginning of each.
const STATEMENTS: &str = "
    SELECT sum(calls)::float8, left(regexp_replace(query, '\\s+', ' ', 'g'), 110)
    FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
    WHERE d.datname = current_database() AND query NOT LIKE '%pg_stat_statements%' AND query NOT LIKE '%bench%'
          AND query NOT LIKE 'SELECT count(*) FROM builds WHERE state IN ($1, $2, $3, $4)'
    GROUP BY 2 ORDER BY 1 DESC";

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<()> {
    let builds: usize = setting("KILN_BENCH_COST_BUILDS", 200)?;
    sqlx::raw_sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        .execute(&bench.pool)
        .await
        .context("Postgres has to be the one that scripts/bench.sh starts")?;
    let proxy = Proxy::start(client(&bench.cluster.kubeconfig).await?, &bench.namespace).await?;
    let server = bench.serve_by(&proxy.kubeconfig()).await?;
    let kubelet = bench.kubelet(&server, Role::Succeed).await?;
    let caller = bench.caller(&server);

    start(&bench.pool, &proxy).await?;
    tokio::time::sleep(IDLE).await;
    let idle = total(&statements(&bench.pool).await?) / IDLE.as_secs_f64();
    let idle_calls: u64 = proxy.take().values().sum();

    start(&bench.pool, &proxy).await?;
    let request = build();
    // One after the other: what shares a statement would be counted as less.
    stream::iter(0..builds)
        .map(|_| caller.post(&request))
        .buffered(1)
        .try_for_each(async |_| {
            bench.settle().await?;
            Ok(())
        })
        .await?;
    kubelet.check()?;
    let statements = statements(&bench.pool).await?;
    let calls = proxy.take();
    drop((kubelet, server));
    bench.clear().await?;

    let each = |count: f64| count / builds as f64;
    let mut table = Table::new(["for each build", ""]);
    table.row(["**statements**".to_owned(), format!("{:.1}", each(total(&statements)))]);
    for (count, statement) in statements.iter().filter(|(count, _)| each(*count) >= SHOWN) {
        table.row([
            format!("`{}`", statement.replace('|', "¦")),
            format!("{:.2}", each(*count)),
        ]);
    }
    table.row([
        "**calls of the Kubernetes API**".to_owned(),
        format!("{:.1}", each(calls.values().sum::<u64>() as f64)),
    ]);
    for (call, count) in calls.iter().filter(|(_, count)| each(**count as f64) >= SHOWN) {
        table.row([call.clone(), format!("{:.2}", each(*count as f64))]);
    }
    println!(
        "{builds} builds, one after the other, each with a log of 100 lines in one push. Without any, Kiln makes {idle:.1} statements \
         a second, and made {idle_calls} calls in {} s:\n\n{table}",
        IDLE.as_secs()
    );
    Ok(())
}

async fn start(pool: &PgPool, proxy: &Proxy) -> anyhow::Result<()> {
    sqlx::raw_sql("SELECT pg_stat_statements_reset()").execute(pool).await?;
    proxy.take();
    Ok(())
}

async fn statements(pool: &PgPool) -> anyhow::Result<Vec<(f64, String)>> {
    Ok(sqlx::query_as(STATEMENTS).fetch_all(pool).await?)
}

fn total(statements: &[(f64, String)]) -> f64 {
    statements.iter().map(|(count, _)| count).sum()
}
