//! Kiln: a container-image build service. `docs/architecture.md` has the map.

pub mod app;
pub mod client;
pub mod domain;
pub mod engine;
pub mod http;
pub mod journal;
pub mod runner;
pub mod store;
