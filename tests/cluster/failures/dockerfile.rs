//! Dockerfiles that can't be carried out: missing, malformed, or asking for what isn't there.

use serde_json::json;

use super::{BUILDERS, Case, Installation, by, expect_failures, inline, run};
use crate::cluster::support::Repository;

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_that_fails_says_where() {
    run(
        4,
        |_| {},
        async |kiln: &Installation| {
            let empty = Repository::public();
            empty.commit(&[("README", "no Dockerfile here\n")]);
            let missing =
                json!({"source": {"type": "git", "url": empty.url}, "dockerfile": "docker/Dockerfile", "push": false});
            let mut cases = Vec::new();
            for builder in BUILDERS {
                let case =
                    |dockerfile: &str, code, words: &[&str]| Case::new(by(builder, inline(dockerfile)), code, words);
                cases.extend([
                    Case::new(
                        by(builder, missing.clone()),
                        "dockerfile_invalid",
                        &["docker/Dockerfile", "`dockerfile`"],
                    ),
                    case(
                        "FROM busybox\nRUNN true\n",
                        "dockerfile_invalid",
                        &["unknown instruction: RUNN"],
                    ),
                    case(
                        "FROM busybox\nRUN echo about to fail && exit 42\n",
                        "build_failed",
                        &["`echo about to fail && exit 42`", "exit code 42", "log"],
                    )
                    .logged(&["about to fail"]),
                    case(
                        "FROM busybox\nCOPY missing.txt /\n",
                        "build_failed",
                        &["missing.txt", "build context"],
                    ),
                    case(
                        "FROM library/no-such-image:9\n",
                        "build_failed",
                        &["library/no-such-image:9", "there is no such image"],
                    ),
                ]);
            }
            // Buildah doesn't know lines.
            cases.push(Case::new(
                inline("FROM busybox\nRUN true\nCOPPY a b\n"),
                "dockerfile_invalid",
                &["line 3", "COPPY", "did you mean COPY?"],
            ));
            cases.push(Case::new(
                inline("# syntax=library/no-such-frontend:1\nFROM busybox\n"),
                "build_failed",
                &["library/no-such-frontend:1", "`# syntax=` line"],
            ));
            expect_failures(kiln, cases).await;
        },
    )
    .await;
}
