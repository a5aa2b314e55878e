//! Clients that others have made follow a build while the replica that they read from is restarted: the browser's
//! `EventSource`, the one of npm, and curl. `scripts/test-clients.sh` installs them and runs this.

mod clients {
    mod following;

    #[expect(dead_code, reason = "the tests of the API use more of it")]
    #[path = "../api/support.rs"]
    mod service;
    #[expect(dead_code, reason = "the tests of the API use more of it")]
    #[path = "../api/worker.rs"]
    mod worker;
}
