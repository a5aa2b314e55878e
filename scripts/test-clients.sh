#!/usr/bin/env bash
# Tests streams with clients that others have made: headless Chromium, npm's `eventsource`, curl. Installs what is missing
# of them. Arguments go to the tests.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
scripts/install.sh

missing=()
for program in node:nodejs npm:npm chromium:chromium; do
  command -v "${program%%:*}" >/dev/null || missing+=("${program##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "Installing ${missing[*]}"
  [ "$(id -u)" = 0 ] || die "as root: apt-get install ${missing[*]}"
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

say "Clients"
export KILN_TEST_CLIENTS=$PWD/target/clients
mkdir -p "$KILN_TEST_CLIENTS"
cp tests/clients/*.js tests/clients/package.json "$KILN_TEST_CLIENTS/"
npm install --prefix "$KILN_TEST_CLIENTS" --no-audit --no-fund --silent

say "Programs"
cargo test --workspace --locked --no-run --test clients

say "Tests with real clients"
postgres_start
cargo test --workspace --locked --test clients -- "$@"
