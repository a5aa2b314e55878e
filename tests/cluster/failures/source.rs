//! Sources that can't be fetched.

use serde_json::{Value, json};

use super::{Case, Installation, expect_failures, run};
use crate::cluster::support::Repository;

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_be_fetched_says_why() {
    run(
        3,
        |_| {},
        async |kiln: &Installation| {
            let private = Repository::private();
            private.commit(&[("Dockerfile", "FROM scratch\n")]);
            let public = Repository::public();
            public.commit(&[("Dockerfile", "FROM scratch\n")]);
            let case = |source: Value, words: &[&str]| {
                Case::new(json!({"source": source, "push": false}), "source_failed", words)
            };
            let cases = vec![
                case(
                    json!({"type": "git", "url": private.url}),
                    &[&private.url, "wants a login"],
                ),
                case(
                    json!({"type": "git", "url": public.url, "ref": "no-such-branch"}),
                    &["`source.ref`", "no-such-branch", &public.url],
                ),
                case(
                    json!({"type": "git", "url": public.url, "commit": "0123456789abcdef0123456789abcdef01234567"}),
                    &["`source.commit`", "0123456789abcdef0123456789abcdef01234567"],
                ),
                case(
                    json!({"type": "git", "url": "http://no-such-host.invalid/app.git"}),
                    &["http://no-such-host.invalid/app.git", "`source.url`", "not known"],
                ),
                case(
                    json!({"type": "git", "url": public.url, "subdir": "no/such/folder"}),
                    &["no/such/folder", "`source.subdir`"],
                ),
            ];
            expect_failures(kiln, cases).await;
        },
    )
    .await;
}
