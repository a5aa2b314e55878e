#!/usr/bin/env bash
# Serves Kiln on the test cluster until Ctrl-C: `kiln serve` with the cluster's configuration and with the rights of
# Kiln's own ServiceAccount, on a Postgres whose data go when it ends.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

shell=scripts/cluster/shell.sh
"$shell" true # says what to do when there is no cluster
say "Building kiln"
cargo build --locked --bins

# A process group of its own: Ctrl-C is for Kiln, which needs the database to end well.
set -m
postgres_start
set +m
export KILN_DATABASE_URL=$DATABASE_URL
target/debug/kiln migrate
token=$(target/debug/kiln token create --name serve.sh --scope project:admin)

cat <<END

In another terminal, once it serves:

  $shell
  export KILN=http://127.0.0.1:8080 TOKEN=$token
  export KILN_URL="\$KILN" KILN_TOKEN="\$TOKEN" PATH="$PWD/target/debug:\$PATH"

Ctrl-C stops it.

END
# shellcheck disable=SC2016 # expanded inside
"$shell" bash -c 'KUBECONFIG=$KILN_TEST_KUBECONFIG exec target/debug/kiln serve'
