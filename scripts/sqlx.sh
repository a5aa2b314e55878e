#!/usr/bin/env bash
# Writes the offline query data in .sqlx from the code and the migrations, with a Postgres of its own.
# With --check: fails when the data in the tree is stale.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

tool sqlx-cli 0.9.0 cargo-sqlx --no-default-features --features postgres
postgres_start
unset SQLX_OFFLINE
cargo sqlx migrate run --source migrations >&2
if [ "${1:-}" = --check ]; then
  cargo sqlx prepare --workspace --check -- --all-targets ||
    die "the data in .sqlx is stale: run 'make sqlx' and commit the result"
else
  cargo sqlx prepare --workspace -- --all-targets
fi
