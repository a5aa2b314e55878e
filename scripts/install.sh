#!/usr/bin/env bash
# Installs the Debian packages that `make run` and `make test` need and that are missing: as root, or by sudo.
# Rust is the one thing that it only names. Does nothing, and needs no rights, when everything is there.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need git git
need git-lfs git-lfs
need buildah buildah
need newuidmap uidmap
need curl curl
need jq jq
need cc gcc
need make make
need pkg-config pkg-config
[ -n "$(postgres_bin)" ] || missing+=(postgresql)
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)

if [ ${#missing[@]} -gt 0 ]; then
  say "Installing ${missing[*]}"
  command -v apt-get >/dev/null ||
    die "this isn't a Debian system: install by hand what provides ${missing[*]}, then run this again"
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null ||
      die "root or sudo is needed once; ask an administrator for: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  # Debian makes and starts a database cluster of its own when Postgres is installed, unless it is told not to.
  no_cluster=/etc/postgresql-common/createcluster.d/kiln.conf
  "${as_root[@]}" mkdir -p "${no_cluster%/*}"
  echo 'create_main_cluster = false' | "${as_root[@]}" tee "$no_cluster" >/dev/null
  trap '"${as_root[@]}" rm -f "$no_cluster"' EXIT
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
how="install it with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
command -v cargo >/dev/null || die "Rust $wanted or newer isn't installed; $how"
have=$(rustc --version | cut -d ' ' -f 2)
[ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ] ||
  die "Rust $have is too old, $wanted or newer is needed: run 'rustup update', or $how"
