#!/usr/bin/env bash
# Writes the offline query data in .sqlx from the code and the migrations, with a Postgres of its own.
# With --check: fails when the data in the tree is stale.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

version=0.9.0
tools=$PWD/target/tools
export PATH="$tools/bin:$PATH"
if [ "$(cargo-sqlx sqlx --version 2>/dev/null)" != "sqlx-cli-sqlx $version" ]; then
  say "Installing sqlx-cli $version into target/tools"
  cargo install sqlx-cli --version "$version" --locked --no-default-features --features postgres --bin cargo-sqlx \
    --root "$tools" --target-dir "$tools/build" --quiet
fi

postgres_start
unset SQLX_OFFLINE
cargo sqlx migrate run --source migrations >&2
if [ "${1:-}" = --check ]; then
  cargo sqlx prepare --workspace --check -- --all-targets ||
    die "the data in .sqlx is stale: run 'make sqlx' and commit the result"
else
  cargo sqlx prepare --workspace -- --all-targets
fi
