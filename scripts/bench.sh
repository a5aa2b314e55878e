#!/usr/bin/env bash
# `make bench`: measures Kiln beside its ceilings and prints tables; docs/benchmarks.md says what they mean.
#
#   bench.sh [accept | archive | delivery | engine | fanout | ingest | launch | life]…   all of them without arguments
#
# Everything stays on this machine: a Postgres of its own on a Unix socket, and for `engine`, `launch` and `life` the test
# cluster (make cluster), which is left as it was.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

all=(accept archive delivery fanout ingest engine launch life)
[ $# -gt 0 ] || set -- "${all[@]}"
for bench; do
  [ -e "benches/$bench/main.rs" ] || die "there is no benchmark '$bench'; those there are: ${all[*]}"
done
# Two at once would measure each other, and clear away each other's pods.
exec {lock}>"${TMPDIR:-/tmp}/kiln-bench.lock"
flock --nonblock "$lock" || die "another benchmark runs on this machine: wait until it ends"
scripts/install.sh
missing=()
for program in pgbench wrk; do command -v $program >/dev/null || missing+=("$program"); done
[ ${#missing[@]} -eq 0 ] || die "missing: ${missing[*]}; as root: apt-get install wrk postgresql"

# `fanout` has ten thousand connections in each of its processes.
ulimit -n "$(ulimit -Hn)"
files=$(ulimit -n)
[ "$files" = unlimited ] || [ "$files" -ge 12000 ] || die "12000 open files are needed and $files allowed: raise the hard limit"

say "Programs"
targets=()
for bench; do targets+=(--bench "$bench"); done
cargo bench --no-run --locked "${targets[@]}"
# What pods run; `delivery` starts it without pods.
cargo build --release --locked -p kiln-agent
KILN_BENCH_AGENT=$(realpath "${CARGO_TARGET_DIR:-target}/release/kiln-agent")
export KILN_BENCH_AGENT

say "Postgres, as durable as in production"
postgres_start logging_collector=on log_destination=jsonlog shared_buffers=256MB shared_preload_libraries=pg_stat_statements

for bench; do
  say "Benchmark $bench"
  case $bench in
  accept | archive | delivery | fanout | ingest)
    cargo bench --quiet --locked --bench "$bench"
    ;;
  *)
    # One that takes pods: without taints.
    KILN_BENCH_NODE=$(scripts/cluster/shell.sh kubectl get nodes -o json |
      jq -r '[.items[] | select((.spec.taints // []) == [])][0].metadata.name // empty')
    [ -n "$KILN_BENCH_NODE" ] || die "no node of the cluster takes pods; see: scripts/cluster/shell.sh kubectl describe nodes"
    export KILN_BENCH_NODE
    scripts/cluster/shell.sh cargo bench --quiet --locked --offline --bench "$bench"
    ;;
  esac
done
