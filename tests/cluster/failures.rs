//! Builds that fail by their own fault: each has its code, and a message that says what to do.

use futures::future::join_all;
use serde_json::{Value, json};

use super::support::{Installation, Repository, Transcript, inline, run, text, variable};

/// A request, and what its failure is to be called and to say.
struct Case {
    request: Value,
    code: &'static str,
    words: Vec<String>,
}

/// Runs the cases at once and checks each failure wherever it shows.
async fn expect_failures(kiln: &Installation, cases: Vec<Case>) {
    let replica = kiln.start().await;
    let api = &replica.api;
    let checks = cases.into_iter().map(|case| async move {
        let build = api.build(&case.request).await;
        let log = api.logs(text(&build, "/id")).await;
        assert_eq!(build["state"], "failed", "{build:#}\n{log}");
        assert_eq!(build["failure"]["code"], case.code, "{build:#}\n{log}");
        let message = text(&build, "/failure/message");
        for words in &case.words {
            assert!(message.contains(words), "`{words}` is not in: {message}");
        }
        assert_eq!(build["failure"]["retried"], false);
        assert_eq!(
            build["attempts"].as_array().map(Vec::len),
            Some(1),
            "a user's mistake is not tried again"
        );
        assert_eq!(build["attempts"][0]["failure"]["code"], case.code);
        assert_eq!(build["digest"], Value::Null);
        let mut transcript = Transcript::new(text(&build, "/id"));
        let end = transcript.read_to_end(api).await;
        assert_eq!(end["failure"]["message"], message);
        assert_eq!(transcript.of_kind("gap"), [] as [&Value; 0]);
    });
    join_all(checks).await;
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_that_fails_says_where() {
    run(3, |_| {}, async |kiln: &Installation| {
        let empty = Repository::public();
        empty.commit(&[("README", "no Dockerfile here\n")]);
        let cases = vec![
            Case {
                request: json!({"source": {"type": "git", "url": empty.url}, "dockerfile": "docker/Dockerfile", "push": false}),
                code: "dockerfile_invalid",
                words: words(&["docker/Dockerfile", "`dockerfile`"]),
            },
            Case {
                request: inline("FROM busybox\nRUNN true\n"),
                code: "dockerfile_invalid",
                words: words(&["line 2", "RUNN"]),
            },
            Case {
                request: inline("FROM busybox\nRUN echo about to fail && exit 42\n"),
                code: "build_failed",
                words: words(&["exit code 42", "line 2", "log"]),
            },
            Case {
                request: inline("FROM busybox\nCOPY missing.txt /\n"),
                code: "build_failed",
                words: words(&["missing.txt", "build context"]),
            },
            Case {
                request: inline("FROM library/no-such-image:9\n"),
                code: "build_failed",
                words: words(&["library/no-such-image:9", "there is no such image"]),
            },
        ];
        expect_failures(kiln, cases).await;
    })
    .await;
}

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
            let case = |source: Value, words: Vec<String>| Case {
                request: json!({"source": source, "push": false}),
                code: "source_failed",
                words,
            };
            let cases = vec![
                case(
                    json!({"type": "git", "url": private.url}),
                    words(&[&private.url, "wants a login"]),
                ),
                case(
                    json!({"type": "git", "url": public.url, "ref": "no-such-branch"}),
                    words(&["`source.ref`", "no-such-branch", &public.url]),
                ),
                case(
                    json!({"type": "git", "url": public.url, "commit": "0123456789abcdef0123456789abcdef01234567"}),
                    words(&["`source.commit`", "0123456789abcdef0123456789abcdef01234567"]),
                ),
                case(
                    json!({"type": "git", "url": "http://no-such-host.invalid/app.git"}),
                    words(&["http://no-such-host.invalid/app.git", "`source.url`", "not known"]),
                ),
                case(
                    json!({"type": "git", "url": public.url, "subdir": "no/such/folder"}),
                    words(&["no/such/folder", "`source.subdir`"]),
                ),
            ];
            expect_failures(kiln, cases).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_says_whose_refusal_it_is() {
    run(
        2,
        |_| {},
        async |kiln: &Installation| {
            let registry = variable("KILN_TEST_AUTH_REGISTRY");
            let image = format!("{registry}/{}/app:1", kiln.name);
            let host = variable("KILN_TEST_HOST_IP");
            let nowhere = format!("{host}:5999/app:1");
            let push = |image: &str| {
                let mut request = inline("FROM busybox\nRUN echo built\n");
                request["push"] = json!(true);
                request["images"] = json!([image]);
                request
            };
            let cases = vec![
                Case {
                    request: push(&image),
                    code: "push_failed",
                    words: vec![image.clone(), "credentials".to_owned()],
                },
                Case {
                    request: push(&nowhere),
                    code: "push_failed",
                    words: vec![nowhere.clone(), "nothing answers".to_owned()],
                },
            ];
            expect_failures(kiln, cases).await;
        },
    )
    .await;
}
