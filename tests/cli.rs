//! The program `kiln` as a client: the real binary against the real API on a real Postgres.

mod cli {
    mod completions;
    mod connection;
    mod database;
    mod display;
    mod folder;
    mod follow;
    mod interrupt;
    mod secrets;
    mod support;
    mod terminal;
    mod verbs;
    mod wire;

    #[expect(dead_code, reason = "the tests of the API use more of it")]
    #[path = "../api/support.rs"]
    mod service;
    #[expect(dead_code, reason = "the tests of the API use more of it")]
    #[path = "../api/worker.rs"]
    mod worker;
}
