//! Repositories behind a login.

use std::{fs, path::PathBuf};

use kiln_agent::wire::{
    plan::{SourceCredentials, SourceKind},
    report::ProblemKind,
};

use crate::{
    git_server::GitServer,
    support::{Bench, Finished},
};

const PASSWORD: &str = "p:a ss";

/// Files as the service lays them out, with the user `ann`.
fn credentials(bench: &Bench, password: &str) -> SourceCredentials {
    let file = |name: &str, text: &str| -> PathBuf {
        let path = bench.path(name);
        fs::write(&path, text).unwrap();
        path
    };
    SourceCredentials::Password {
        username: file("git-username", "ann"),
        password: file("git-password", password),
    }
}

fn fetch(url: &str, submodules: bool, password: Option<&str>) -> (Bench, Finished) {
    let bench = Bench::new();
    let credentials = password.map(|password| credentials(&bench, password));
    let finished = bench.fetch(bench.source(SourceKind::Git {
        url: url.to_owned(),
        reference: None,
        commit: None,
        submodules,
        credentials,
    }));
    (bench, finished)
}

#[test]
fn a_password_opens_the_repository_and_shows_nowhere() {
    let server = GitServer::start();
    server.repository("app");
    let (bench, finished) = fetch(&server.url("private/app.git"), false, Some(PASSWORD));
    assert!(finished.succeeded, "{}", finished.text());
    assert!(!finished.text().contains(PASSWORD), "{}", finished.text());
    let config = fs::read_to_string(bench.path("source/.git/config")).unwrap();
    assert!(!config.contains(PASSWORD) && !config.contains("ann"), "{config}");
}

#[test]
fn a_wrong_password_and_none_are_told_apart() {
    let server = GitServer::start();
    server.repository("app");
    let url = server.url("private/app.git");
    for (password, told) in [
        (None, "name a secret of kind `git` in `source.credentials`"),
        (Some("wrong"), "refuses the login in `source.credentials`"),
    ] {
        let (_, finished) = fetch(&url, false, password);
        assert_eq!(finished.report.problem.as_ref().unwrap().kind, ProblemKind::Source);
        let message = finished.message();
        assert!(message.contains(told), "{message}");
    }
}

#[test]
fn submodules_of_the_same_server_get_the_login_too() {
    let server = GitServer::start();
    let (app, library) = (server.repository("app"), server.repository("library"));
    library.commit("library.c", "int x;\n");
    app.add_submodule("library", &library, "../library.git");
    app.commit_all("Add a submodule");
    let (bench, finished) = fetch(&server.url("private/app.git"), true, Some(PASSWORD));
    assert!(finished.succeeded, "{}", finished.text());
    assert!(bench.path("source/library/library.c").exists());
}

#[test]
fn no_other_server_is_told_the_password() {
    let (server, other) = (GitServer::start(), GitServer::start());
    let (app, library) = (server.repository("app"), other.repository("library"));
    other.repository("app");
    app.add_submodule("library", &library, &other.url("private/library.git"));
    app.commit_all("Add a submodule");
    // The first wants a login itself, so the password is on its way.
    let (_, finished) = fetch(&server.url("private/app.git"), true, Some(PASSWORD));
    let message = finished.message();
    assert!(message.contains("its repository wants a login"), "{message}");

    server.move_to(&other.url("private"));
    let (_, finished) = fetch(&server.url("moved/app.git"), false, Some(PASSWORD));
    assert!(!finished.succeeded, "{}", finished.text());
    assert!(other.requests().iter().any(|path| path.starts_with("/private/app.git")));
    assert!(!server.logins().is_empty());
    assert_eq!(other.logins(), [""; 0]);
}
