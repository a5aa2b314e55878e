//! What Kiln holds in memory with nothing to do, and with builds that run.

use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{Bench, build, kiln::resident, kubelet::Role, setting::setting, table::Table};

/// So long nothing changes until memory is looked at.
const REST: Duration = Duration::from_secs(5);

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<()> {
    let builds: usize = setting("KILN_BENCH_RUNNING", 2000)?;
    let server = bench.serve().await?;
    let idle = resident(server.id())?;
    let kubelet = bench.kubelet(&server, Role::Run).await?;
    let caller = bench.caller(&server);
    let request = build();
    stream::iter(0..builds)
        .map(|_| caller.post(&request))
        .buffer_unordered(16)
        .try_for_each(async |_| Ok(()))
        .await?;
    let all_run = async {
        loop {
            kubelet.check()?;
            let running: i64 = sqlx::query_scalar("SELECT count(*) FROM builds WHERE state = 'running'")
                .fetch_one(&bench.pool)
                .await?;
            if usize::try_from(running)? == builds {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(3), all_run)
        .await
        .context("not all builds run")??;
    tokio::time::sleep(REST).await;
    let busy = resident(server.id())?;
    drop((kubelet, server));
    bench.clear().await?;

    let mut table = Table::new(["Kiln", "resident MiB", "KiB each"]);
    table.row(["idle".to_owned(), format!("{idle:.0}"), String::new()]);
    table.row([
        format!("with {builds} running builds"),
        format!("{busy:.0}"),
        format!("{:.1}", (busy - idle) * 1024.0 / builds as f64),
    ]);
    println!("{table}");
    Ok(())
}
