//! The store, the journal and the engine on a real Postgres. Attempts run in a simulated runner, because killing,
//! losing and racing them must happen at chosen moments; `tests/cluster` does the same to real pods.

mod workers {
    mod claims;
    mod clocks;
    mod engine;
    mod intake;
    mod journal;
    mod merge;
    mod model;
    mod pool;
    mod pushes;
    mod queue;
    mod retries;
    mod sim;
    mod support;
}
