//! Builds that use more than they may: memory, disk, time.

use serde_json::{Value, json};

use super::{BUILDERS, Case, Installation, by, expect_failures, inline, run, set};

fn with(mut request: Value, resource: &str, amount: &str) -> Value {
    request["resources"] = json!({"cpu": "500m", "memory": "256Mi", "disk": "1Gi"});
    request["resources"][resource] = json!(amount);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_eats_memory_is_told_to_ask_for_more() {
    run(
        2,
        |_| {},
        async |kiln: &Installation| {
            let cases = BUILDERS.map(|builder| {
                // `tail` keeps what it reads until a line ends, and none does.
                let request = inline("FROM busybox\nRUN echo eating; tail /dev/zero\n");
                Case::new(
                    with(by(builder, request), "memory", "128Mi"),
                    "out_of_memory",
                    &["`echo eating; tail /dev/zero`", "killed", "`resources.memory`"],
                )
                .logged(&["eating"])
                // The second has twice as much, and eats that, too.
                .attempts(2)
            });
            expect_failures(kiln, cases.into()).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_fills_its_disk_is_evicted() {
    run(
        2,
        // It would be evicted again and again.
        |config| set(config, "engine.max_attempts", 1),
        async |kiln: &Installation| {
            let cases = BUILDERS.map(|builder| {
                let request = inline("FROM busybox\nRUN echo filling; head -c 300000000 /dev/zero >/big; sleep 170\n");
                Case::new(
                    with(by(builder, request), "disk", "100Mi"),
                    "evicted",
                    &["exceed", "100Mi", "`resources.disk`"],
                )
                .logged(&["filling"])
            });
            expect_failures(kiln, cases.into()).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_space_is_named() {
    // A volume that is full at its limit, as with quotas, instead of being watched.
    let full = |config: &mut toml::Table| {
        let volume: toml::Table = "name = \"storage\"\nemptyDir = { medium = \"Memory\", sizeLimit = \"48Mi\" }"
            .parse()
            .expect("TOML");
        set(
            config,
            "kubernetes.pod_template.spec.volumes",
            vec![toml::Value::from(volume)],
        );
        set(config, "engine.max_attempts", 1);
    };
    run(2, full, async |kiln: &Installation| {
        let cases = BUILDERS.map(|builder| {
            let request = inline("FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=100\n");
            Case::new(
                with(by(builder, request), "memory", "512Mi"),
                "build_failed",
                &["exit code 1", "the disk was full", "`resources.disk`"],
            )
            .logged(&["No space left on device"])
        });
        expect_failures(kiln, cases.into()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_takes_too_long_is_ended() {
    run(
        2,
        |_| {},
        async |kiln: &Installation| {
            let cases = BUILDERS.map(|builder| {
                let mut request = by(builder, inline("FROM busybox\nRUN echo waiting; sleep 600\n"));
                request["timeout_seconds"] = json!(10);
                Case::new(request, "timeout", &["`timeout_seconds` of 10", "Raise it"]).logged(&["waiting"])
            });
            expect_failures(kiln, cases.into()).await;
        },
    )
    .await;
}
