# shellcheck shell=bash
# Shared by the scripts beside it; sourced, never run. Sets the working folder to the top of the repository.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"
# Queries are checked against the data in .sqlx, so that compiling needs no database.
export SQLX_OFFLINE=true
# Services and containers may have no HOME; programs then ask the user database.
[ -d "${HOME:-}/.cargo/bin" ] && export PATH="${HOME:-}/.cargo/bin:$PATH"

say() { printf '\n\033[1m==> %s\033[0m\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Puts a pinned cargo subcommand on the PATH; builds it under target/tools when it isn't there.
#   tool CRATE VERSION PROGRAM [FLAG…]
tool() {
  local crate=$1 version=$2 program=$3 root=$PWD/target/tools/$1-$2
  shift 3
  if [ ! -x "$root/bin/$program" ]; then
    say "Building $crate $version into target/tools"
    cargo install "$crate" --version "$version" --locked --bin "$program" --root "$root" \
      --target-dir target/tools/build --quiet "$@"
  fi
  export PATH="$root/bin:$PATH"
}

# Prints the folder of the newest Postgres server's programs; Debian keeps them out of PATH.
postgres_bin() {
  if command -v initdb >/dev/null && command -v postgres >/dev/null; then
    dirname "$(readlink -f "$(command -v postgres)")"
  else
    find /usr/lib/postgresql -path '*/bin/postgres' 2>/dev/null | sort -V | tail -n 1 | xargs -r dirname
  fi
}

# Starts a Postgres of its own for this script and exports DATABASE_URL; the data goes when the script ends.
# Its settings are those of `postgres -c`; without any it is quick rather than durable.
# It lives under /tmp because the user `postgres`, as whom it runs for root, may be unable to enter the checkout, and
# because a socket's path is limited to 107 bytes. `--pdeathsig` ends it even when this script is killed outright.
postgres_start() {
  local bin setting as=() settings=()
  [ $# -gt 0 ] || set -- fsync=off synchronous_commit=off full_page_writes=off shared_buffers=256MB
  for setting; do settings+=(-c "$setting"); done
  bin=$(postgres_bin)
  [ -n "$bin" ] || die "Postgres isn't installed: run scripts/install.sh"
  postgres_dir=$(mktemp -d /tmp/kiln-postgres.XXXXXX)
  trap postgres_stop EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  if [ "$(id -u)" = 0 ]; then
    as=(setpriv --reuid=postgres --regid=postgres --init-groups)
    chown postgres: "$postgres_dir"
  fi
  "${as[@]}" "$bin/initdb" -D "$postgres_dir/data" -U postgres -A trust -E UTF8 --no-locale --no-sync >"$postgres_dir/initdb.log" 2>&1 ||
    die "initdb failed: $(tail -n 5 "$postgres_dir/initdb.log")"
  "${as[@]}" setpriv --pdeathsig INT "$bin/postgres" -D "$postgres_dir/data" -k "$postgres_dir" -c listen_addresses= \
    -c max_connections=300 "${settings[@]}" \
    >"$postgres_dir/log" 2>&1 </dev/null &
  postgres_pid=$!
  for _ in $(seq 150); do
    if grep -qs '^ready' "$postgres_dir/data/postmaster.pid"; then
      export DATABASE_URL="postgres:///postgres?host=$postgres_dir&user=postgres"
      return
    fi
    kill -0 "$postgres_pid" 2>/dev/null || break
    sleep 0.2
  done
  die "Postgres didn't start: $(tail -n 5 "$postgres_dir/log")"
}

postgres_stop() {
  if [ -n "${postgres_pid:-}" ]; then
    kill -INT "$postgres_pid" 2>/dev/null || true
    wait "$postgres_pid" 2>/dev/null || true
  fi
  [ -z "${postgres_dir:-}" ] || rm -rf "$postgres_dir"
}
