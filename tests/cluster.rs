//! Kiln on a real cluster: real `kiln serve` processes, real pods, a real registry and a real git server, seen through
//! the public API only. `scripts/test-cluster.sh` runs it inside the cluster's network; each test has an installation
//! and a database of its own, so that tests run side by side.

mod cluster {
    mod archive;
    mod cache;
    mod conformance;
    mod credentials;
    mod delivery;
    mod deploy;
    mod failures;
    mod images;
    mod logs;
    mod outages;
    mod queue;
    mod registries;
    mod replicas;
    mod sources;
    mod steps;
    mod stopping;
    mod support;
}
