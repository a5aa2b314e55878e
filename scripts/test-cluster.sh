#!/usr/bin/env bash
# `make test-cluster`: Kiln's programs on the test cluster, which is started unless it runs, against a Postgres of its
# own. Everything is compiled outside of the cluster's network, where the package registry is, and run inside.
# Arguments go to the tests.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scripts/install.sh
say "Cluster"
scripts/cluster/up.sh

say "Programs"
# The whole workspace, as for `make test`: another choice of packages would be compiled anew.
cargo clippy --workspace --locked --all-targets -- -D warnings
cargo clippy --workspace --locked --test cluster -- -D warnings
cargo build --workspace --locked --bins
cargo test --workspace --locked --no-run --test cluster
program=$(cargo test --workspace --locked --no-run --test cluster --message-format=json 2>/dev/null |
  jq -r 'select(.target.name? == "cluster" and .executable) | .executable')
scripts/cluster/images.sh agent

say "Tests on the cluster"
postgres_start
output=$(mktemp)
suite() {
  scripts/cluster/shell.sh "$program" "$@" 2>&1 | tee "$output"
}
if ! suite --test-threads "${KILN_TEST_THREADS:-4}" "$@"; then
  # A whole Kubernetes and four builds at a time on whatever machine this is: what fails there may be the machine. It
  # gets a second chance alone, and is named either way; what fails alone is wrong.
  mapfile -t failed < <(sed -n '/^failures:$/,$ s/^    \(cluster::[a-z0-9_:]*\)$/\1/p' "$output" | sort -u)
  if [ "${#failed[@]}" = 0 ] || [ "${#failed[@]}" -gt 3 ]; then die "the tests on the cluster failed"; fi
  say "Failed beside others, once more alone: ${failed[*]}"
  suite --test-threads 1 --exact "${failed[@]}"
  say "UNSTABLE: passed alone only: ${failed[*]}"
fi
rm -f "$output"
