//! `kiln-agent source` against a real git server.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use kiln_agent::wire::{
    plan::{SourceKind, SourcePlan},
    report::{Exit, ProblemKind},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    git_server::{GitServer, Repository, git},
    support::{Bench, Finished, eventually},
};

/// What to fetch from a URL: a ref, a commit.
fn from(url: &str, reference: Option<&str>, commit: Option<&str>) -> SourceKind {
    SourceKind::Git {
        url: url.to_owned(),
        reference: reference.map(str::to_owned),
        commit: commit.map(str::to_owned),
        submodules: false,
        credentials: None,
    }
}

fn fetch(bench: &Bench, from: SourceKind) -> Finished {
    bench.fetch(bench.source(from))
}

/// Fetches what can't be had; returns the message.
fn refused(from: SourceKind) -> String {
    let finished = fetch(&Bench::new(), from);
    assert!(!finished.succeeded && finished.report.exit != Exit::Code(0));
    assert_eq!(
        finished.report.problem.as_ref().unwrap().kind,
        ProblemKind::Source,
        "{}",
        finished.text()
    );
    assert!(finished.text().ends_with(&format!("\nError: {}\n", finished.message())));
    finished.message().to_owned()
}

#[test]
fn the_default_branch_in_two_requests_and_one_commit() {
    let server = GitServer::start();
    let repository = server.repository("app");
    let tip = repository.commit("README", "text\n");
    let bench = Bench::new();
    let finished = fetch(&bench, from(&server.url("app.git"), None, None));
    assert!(finished.succeeded, "{}", finished.text());
    assert_eq!(finished.report.commit.as_deref(), Some(tip.as_str()));
    assert_eq!(finished.report.tail, "");
    let text = finished.text();
    assert!(text.contains(&format!("Checked out {tip} Write README\n")), "{text}");
    let source = bench.path("source");
    assert_eq!(fs::read_to_string(source.join("README")).unwrap(), "text\n");
    assert_eq!(git(&source, &["rev-list", "--count", "HEAD"]), "1");
    assert_eq!(git(&source, &["status", "--porcelain"]), "");
    assert_eq!(
        fs::metadata(source.join("README")).unwrap().permissions().mode() & 0o777,
        0o644
    );
    assert_eq!(fs::metadata(&source).unwrap().permissions().mode() & 0o055, 0o055);
    assert_eq!(
        server.requests(),
        [
            "/app.git/info/refs",
            "/app.git/git-upload-pack",
            "/app.git/git-upload-pack"
        ]
    );
}

#[test]
fn branches_tags_and_full_names() {
    let server = GitServer::start();
    let repository = server.repository("app");
    let first = repository.git(&["rev-parse", "HEAD"]);
    repository.git(&["tag", "-a", "-m", "annotated", "v1"]);
    repository.git(&["tag", "both"]);
    repository.git(&["checkout", "-q", "-b", "feature/x"]);
    let on_feature = repository.commit("feature", "x\n");
    repository.git(&["branch", "both"]);
    repository.push();
    repository.git(&["push", "-q", "origin", "HEAD:refs/pull/7/head"]);
    let url = server.url("app.git");
    for (reference, commit) in [
        ("main", &first),
        ("v1", &first),
        ("refs/tags/v1", &first),
        ("feature/x", &on_feature),
        ("refs/heads/feature/x", &on_feature),
        ("both", &on_feature),
        ("refs/tags/both", &first),
        ("pull/7/head", &on_feature),
        ("HEAD", &first),
    ] {
        let finished = fetch(&Bench::new(), from(&url, Some(reference), None));
        assert_eq!(
            finished.report.commit.as_ref(),
            Some(commit),
            "{reference}: {}",
            finished.text()
        );
    }
}

#[test]
fn a_commit_by_its_id() {
    let server = GitServer::start();
    let repository = server.repository("app");
    let first = repository.git(&["rev-parse", "HEAD"]);
    repository.commit("second", "");
    for (path, searched) in [("app.git", false), ("old/app.git", true)] {
        let url = server.url(path);
        for reference in [None, Some("main"), Some("gone")] {
            let finished = fetch(&Bench::new(), from(&url, reference, Some(&first)));
            assert_eq!(
                finished.report.commit.as_deref(),
                Some(first.as_str()),
                "{}",
                finished.text()
            );
            assert_eq!(finished.text().contains("does not give out commits"), searched);
        }
    }
}

#[test]
fn a_commit_deep_in_the_history_of_an_old_server() {
    let server = GitServer::start();
    let repository = server.repository("app");
    let first = repository.git(&["rev-parse", "HEAD"]);
    for _ in 0..60 {
        repository.git(&["commit", "-q", "--allow-empty", "-m", "more"]);
    }
    repository.git(&["checkout", "-q", "-b", "side", &first]);
    let on_side = repository.commit("side", "");
    repository.git(&["push", "-q", "origin", "main"]);
    for commit in [&first, &on_side] {
        let finished = fetch(
            &Bench::new(),
            from(&server.url("old/app.git"), Some("main"), Some(commit)),
        );
        assert_eq!(finished.report.commit.as_ref(), Some(commit), "{}", finished.text());
    }
}

#[test]
fn a_commit_that_is_not_there() {
    let server = GitServer::start();
    server.repository("app");
    let missing = "0123456789abcdef0123456789abcdef01234567";
    for path in ["app.git", "old/app.git"] {
        for reference in [None, Some("main")] {
            let message = refused(from(&server.url(path), reference, Some(missing)));
            assert!(
                message.starts_with(&format!("`source.commit`: commit {missing} is not in http")),
                "{message}"
            );
        }
    }
}

#[test]
fn a_ref_that_is_not_there() {
    let server = GitServer::start();
    server.repository("app");
    for reference in ["nope", "a/b", "refs/heads/nope"] {
        let message = refused(from(&server.url("app.git"), Some(reference), None));
        assert!(
            message.starts_with(&format!(
                "`source.ref`: there is no branch or tag `{reference}` in http"
            )),
            "{message}"
        );
    }
}

#[test]
fn an_empty_repository() {
    let server = GitServer::start();
    let bare = server.repository("app").bare;
    git(&bare, &["update-ref", "-d", "refs/heads/main"]);
    let message = refused(from(&server.url("app.git"), None, None));
    assert!(message.contains("has no default branch"), "{message}");
}

#[test]
fn a_ref_that_is_no_commit() {
    let server = GitServer::start();
    let repository = server.repository("app");
    let tree = repository.git(&["rev-parse", "HEAD^{tree}"]);
    repository.git(&["tag", "tree", &tree]);
    repository.push();
    let message = refused(from(&server.url("app.git"), Some("tree"), None));
    assert!(
        message.starts_with("`source.ref`: `tree` exists but is not a commit"),
        "{message}"
    );
}

#[test]
fn servers_that_refuse() {
    let server = GitServer::start();
    server.repository("app");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, told, said) in [
        (server.url("gone.git"), "There is no repository at", "not found"),
        (
            server.url("private/app.git"),
            "wants a login",
            "could not read Username",
        ),
        (
            server.url("forbidden/app.git"),
            "wants a login or refuses access",
            "403",
        ),
        (
            server.url("web/app.git"),
            "is not a git repository",
            "not valid: is this a git repository?",
        ),
        (server.url("broken/app.git"), "an error of its own", "502"),
        (server.url("reset/app.git"), "broke off", "Empty reply from server"),
        (
            format!("http://{closed}/app.git"),
            "can't be reached",
            "Failed to connect",
        ),
    ] {
        let message = refused(from(&url, Some("main"), None));
        assert!(message.contains(told) && message.contains(&url), "{message}");
        let (_, words) = message.split_once("git said: ").unwrap();
        assert!(words.contains(said), "{message}");
    }
}

#[test]
fn what_may_pass_is_tried_again() {
    let server = GitServer::start();
    let tip = server.repository("app").git(&["rev-parse", "HEAD"]);
    server.fail_next(2);
    let finished = fetch(&Bench::new(), from(&server.url("flaky/app.git"), None, None));
    assert_eq!(finished.report.commit, Some(tip));
    let text = finished.text();
    assert!(
        text.contains("trying again in 1 s") && text.contains("trying again in 2 s"),
        "{text}"
    );
    server.fail_next(3);
    let message = refused(from(&server.url("flaky/app.git"), None, None));
    assert!(message.contains("503"), "{message}");
}

#[test]
fn what_git_may_not_be_given_never_reaches_it() {
    let id = "0123456789abcdef0123456789abcdef01234567";
    for from in [
        from("ext::sh -c true", None, None),
        from("file:///etc", None, None),
        from("--upload-pack=true", None, None),
        from("http://127.0.0.1/a b", None, None),
        from("http://127.0.0.1/", Some("--upload-pack=true"), None),
        from("http://127.0.0.1/", Some("+a:b"), None),
        from("http://127.0.0.1/", None, Some("--all")),
        from("http://127.0.0.1/", None, Some(&id[1..])),
    ] {
        let finished = fetch(&Bench::new(), from);
        let problem = finished.report.problem.as_ref().unwrap();
        assert_eq!(problem.kind, ProblemKind::Internal);
        assert!(problem.message.contains("git may be given"), "{}", problem.message);
        assert_eq!(finished.lines.len(), 1);
    }
}

#[test]
fn repositories_with_long_ids() {
    let server = GitServer::start();
    let repository = server.repository_with("app", &["--object-format=sha256"]);
    let tip = repository.git(&["rev-parse", "HEAD"]);
    assert_eq!(tip.len(), 64);
    for commit in [None, Some(tip.as_str())] {
        let finished = fetch(&Bench::new(), from(&server.url("app.git"), None, commit));
        assert_eq!(finished.report.commit.as_ref(), Some(&tip), "{}", finished.text());
    }
}

fn with_submodules(bench: &Bench, url: &str) -> SourcePlan {
    bench.source(SourceKind::Git {
        url: url.to_owned(),
        reference: None,
        commit: None,
        submodules: true,
        credentials: None,
    })
}

#[test]
fn submodules_come_with_it_when_asked_for() {
    let server = GitServer::start();
    let (app, library) = (server.repository("app"), server.repository("library"));
    library.commit("library.c", "int x;\n");
    app.add_submodule("relative", &library, "../library.git");
    app.add_submodule("absolute", &library, &server.url("library.git"));
    app.commit_all("Add submodules");
    let bench = Bench::new();
    let finished = bench.fetch(with_submodules(&bench, &server.url("app.git")));
    assert!(finished.succeeded, "{}", finished.text());
    for name in ["relative", "absolute"] {
        let folder = bench.path("source").join(name);
        assert_eq!(fs::read_to_string(folder.join("library.c")).unwrap(), "int x;\n");
        assert_eq!(git(&folder, &["rev-list", "--count", "HEAD"]), "1");
    }
    let bench = Bench::new();
    assert!(fetch(&bench, from(&server.url("app.git"), None, None)).succeeded);
    assert!(!bench.path("source/relative/library.c").exists());
}

#[test]
fn submodules_from_servers_that_give_out_no_commit_by_its_id() {
    let server = GitServer::start();
    let (app, library) = (server.repository("app"), server.repository("library"));
    library.commit("library.c", "int old;\n");
    let pinned = library.git(&["rev-parse", "HEAD"]);
    app.add_submodule("library", &library, &server.url("old/library.git"));
    library.commit("library.c", "int new;\n");
    app.commit_all("Add a submodule");
    let bench = Bench::new();
    let finished = bench.fetch(with_submodules(&bench, &server.url("app.git")));
    assert!(finished.succeeded, "{}", finished.text());
    let folder = bench.path("source/library");
    assert_eq!(git(&folder, &["rev-parse", "HEAD"]), pinned);
    assert_eq!(fs::read_to_string(folder.join("library.c")).unwrap(), "int old;\n");
}

/// Lets a repository keep `*.bin` in Git LFS, with one such file.
fn keep_in_lfs(repository: &Repository, pointer: &str) {
    repository.commit(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
    repository.commit("data.bin", pointer);
}

#[test]
fn files_in_lfs_come_with_it() {
    let server = GitServer::start();
    let (app, library) = (server.repository("app"), server.repository("library"));
    keep_in_lfs(&library, &server.keep_large(b"the library's"));
    keep_in_lfs(&app, &server.keep_large(&vec![7; 300_000]));
    app.add_submodule("library", &library, "../library.git");
    app.commit_all("Add a submodule");
    let bench = Bench::new();
    let finished = bench.fetch(with_submodules(&bench, &server.url("app.git")));
    assert!(finished.succeeded, "{}", finished.text());
    assert_eq!(fs::read(bench.path("source/data.bin")).unwrap(), vec![7; 300_000]);
    assert_eq!(
        fs::read(bench.path("source/library/data.bin")).unwrap(),
        b"the library's"
    );
    // Nobody is asked for large files where there are none.
    let plain = server.repository("plain");
    drop(plain);
    let before = server.requests().len();
    assert!(fetch(&Bench::new(), from(&server.url("plain.git"), None, None)).succeeded);
    assert!(server.requests()[before..].iter().all(|path| !path.contains("lfs")));
}

#[test]
fn files_that_lfs_does_not_have() {
    let server = GitServer::start();
    let app = server.repository("app");
    let gone = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n",
        "0".repeat(64)
    );
    keep_in_lfs(&app, &gone);
    let message = refused(from(&server.url("app.git"), None, None));
    assert!(
        message.contains("Git LFS can't be had; push it (git lfs push --all)"),
        "{message}"
    );
}

#[test]
fn a_missing_git_lfs_is_named() {
    let server = GitServer::start();
    keep_in_lfs(&server.repository("app"), &server.keep_large(b"x"));
    let bench = Bench::new();
    // Everything that git needs, and no git-lfs.
    let programs = bench.path("programs");
    fs::create_dir(&programs).unwrap();
    for name in ["git", "sh", "sed", "uname", "basename", "dirname"] {
        symlink(Path::new("/usr/bin").join(name), programs.join(name)).unwrap();
    }
    bench.write_source(bench.source(from(&server.url("app.git"), None, None)));
    let status = bench.step("source").env("PATH", &programs).status().unwrap();
    assert!(!status.success());
    let message = bench.report().problem.unwrap().message;
    assert!(
        message.contains("git-lfs is not installed") && message.contains("apt-get install git-lfs"),
        "{message}"
    );
}

#[test]
fn submodules_that_cannot_be_had() {
    let server = GitServer::start();
    let library = server.repository("library");
    let local = library.bare.to_str().unwrap().to_owned();
    for (url, told) in [
        (server.url("gone.git"), "its repository was not found"),
        (server.url("private/library.git"), "wants a login"),
        (local.clone(), "not of the kind http, https or ssh"),
    ] {
        let app = server.repository("app");
        app.add_submodule("library", &library, &url);
        app.commit_all("Add a submodule");
        let bench = Bench::new();
        let finished = bench.fetch(with_submodules(&bench, &server.url("app.git")));
        assert_eq!(finished.report.problem.as_ref().unwrap().kind, ProblemKind::Source);
        let message = finished.message();
        assert!(
            message.starts_with("A submodule could not be fetched: ") && message.contains(told),
            "{message}"
        );
        fs::remove_dir_all(&app.bare).unwrap();
        fs::remove_dir_all(&app.work).unwrap();
    }
}

#[test]
fn context_and_dockerfile_are_checked() {
    let server = GitServer::start();
    let repository = server.repository("app");
    repository.commit("web/Dockerfile.prod", "FROM scratch\n");
    symlink("/etc", repository.work.join("escape")).unwrap();
    symlink("../../../../etc/passwd", repository.work.join("passwd")).unwrap();
    repository.commit_all("Add links");
    let checked = |subdir: &str, dockerfile: &str| {
        let bench = Bench::new();
        let mut plan = bench.source(from(&server.url("app.git"), None, None));
        (plan.subdir, plan.dockerfile) = (subdir.to_owned(), dockerfile.to_owned());
        let finished = bench.fetch(plan);
        finished.report.problem.map(|problem| (problem.kind, problem.message))
    };
    assert_eq!(checked("", "Dockerfile"), None);
    assert_eq!(checked("web", "Dockerfile.prod"), None);
    for (subdir, dockerfile, kind, told) in [
        (
            "nope",
            "Dockerfile",
            ProblemKind::Source,
            "`source.subdir`: `nope` does not exist",
        ),
        (
            "escape",
            "passwd",
            ProblemKind::Source,
            "`source.subdir`: `escape` is a symbolic link that leads out",
        ),
        ("", "passwd", ProblemKind::Dockerfile, "`dockerfile`: `passwd` "),
        (
            "web",
            "Dockerfile",
            ProblemKind::Dockerfile,
            "did you mean `Dockerfile.prod`?",
        ),
    ] {
        let (found, message) = checked(subdir, dockerfile).unwrap();
        assert_eq!(found, kind);
        assert!(message.contains(told), "{message}");
    }
}

#[test]
fn neither_the_host_nor_its_environment_has_a_say() {
    let server = GitServer::start();
    let tip = server.repository("app").git(&["rev-parse", "HEAD"]);
    let bench = Bench::new();
    let home = bench.path("home");
    fs::create_dir_all(&home).unwrap();
    fs::write(
        home.join(".gitconfig"),
        "[url \"http://127.0.0.1:1/\"]\n\tinsteadOf = http://\n",
    )
    .unwrap();
    let plan = bench.source(from(&server.url("app.git"), None, None));
    bench.write_source(plan);
    let mut step = bench.step("source");
    step.env("HOME", &home)
        .env("GIT_DIR", "/nowhere")
        .env("GIT_CONFIG_GLOBAL", home.join(".gitconfig"))
        .env("GIT_TEMPLATE_DIR", bench.path("template"));
    assert!(step.status().unwrap().success());
    assert_eq!(bench.report().commit, Some(tip));
}

#[test]
fn a_stop_ends_a_fetch_that_hangs() {
    let server = GitServer::start();
    let bench = Bench::new();
    let running = bench.start_source(bench.source(from(&server.url("silent/app.git"), None, None)));
    eventually("a request", || server.requests().first().map(drop));
    running.signal(Signal::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.report.exit, Exit::Stopped);
    assert_eq!(finished.report.problem, None);
}

#[test]
fn a_git_that_is_killed_is_reported_as_that() {
    let server = GitServer::start();
    let bench = Bench::new();
    let running = bench.start_source(bench.source(from(&server.url("silent/app.git"), None, None)));
    eventually("a request", || server.requests().first().map(drop));
    let child = fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.pid())).unwrap();
    kill(Pid::from_raw(child.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    let finished = running.finish();
    assert_eq!(
        (finished.report.exit, &finished.report.problem),
        (Exit::Signal(9), &None)
    );
}

#[test]
fn a_stop_ends_the_wait_between_tries() {
    let bench = Bench::new();
    let server = GitServer::start();
    let mut running = bench.start_source(bench.source(from(&server.url("broken/app.git"), None, None)));
    running.read_until("trying again in 2 s");
    running.signal(Signal::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.report.exit, Exit::Stopped);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn inline_files() {
    let bench = Bench::new();
    let files = [("Dockerfile", "RlJPTSBzY3JhdGNoCg=="), ("src/a", "YQ==")];
    let files = files.map(|(name, content)| (name.to_owned(), content.to_owned()));
    let finished = fetch(&bench, SourceKind::Inline { files: files.into() });
    assert!(finished.succeeded, "{}", finished.text());
    assert_eq!(finished.report.commit, None);
    assert_eq!(
        fs::read_to_string(bench.path("source/Dockerfile")).unwrap(),
        "FROM scratch\n"
    );
    assert_eq!(fs::read_to_string(bench.path("source/src/a")).unwrap(), "a");
    let again = fetch(&bench, SourceKind::Inline { files: BTreeMap::new() });
    assert!(again.message().contains("can't be used"), "{}", again.message());
    assert!(Path::new(&bench.path("source/Dockerfile")).exists());
}
