#!/usr/bin/env bash
# `make test`: format, lints, then every test but those that need a cluster, against a Postgres of its own.
# Arguments go to `cargo test`.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
scripts/install.sh

say "Format"
cargo fmt --all --check
say "Lints"
cargo clippy --workspace --all-targets --locked -- -D warnings
# `--all-targets` leaves out what isn't tested by default.
cargo clippy --workspace --locked --test cluster --test clients -- -D warnings
say "Programs"
# The tests start `kiln-agent`, which `cargo test` alone doesn't always build.
cargo build --workspace --bins --locked
say "Tests"
# The same cases every time: what decides about a change is the change, not the luck of the draw. `make soak` draws anew.
export PROPTEST_RNG_SEED=20260517
postgres_start
cargo test --workspace --locked --no-fail-fast "$@"
