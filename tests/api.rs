//! The REST API on a real Postgres, over a real socket. The files mirror the URLs.

mod api {
    mod auth;
    mod builds {
        mod cancel;
        mod create;
        mod events;
        mod get;
        mod list;
        mod logs;
        mod plans;
        mod retry;
    }
    mod errors;
    mod operations;
    mod projects;
    mod support;
    mod worker;
}
