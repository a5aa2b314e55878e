//! The REST API on a real Postgres, over a real socket. The files mirror the URLs.

mod api {
    mod auth;
    mod builds {
        mod cancel;
        mod coalesce;
        mod create;
        pub(super) mod events;
        mod get;
        mod group;
        mod history;
        mod list;
        mod logs;
        mod plans;
        mod queue;
        mod retry;
        mod streams;
    }
    mod dead_peers;
    mod errors;
    mod events;
    mod hooks;
    mod internal {
        mod v1 {
            mod attempts {
                mod agent;
                mod log;
            }
        }
    }
    mod nodes;
    mod operations;
    mod projects;
    mod stream_tickets;
    mod support;
    mod surroundings;
    mod uploads;
    mod worker;
}
