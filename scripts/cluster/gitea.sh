#!/usr/bin/env bash
# Builds the forge that tests of hooks start. It is a Go module whose own go.mod
# has replacements, which a dependent doesn't get: so it is built in a copy of
# its folder, whose sum is pinned here. It is built again only when the version
# or the compiler changed.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VERSION=v1.26.0
SUM=h1:fJP9dqLbzKrKWUVnCVTfVersZdVDuyJQLEDzCAOmKKA=

command -v go >/dev/null || die "Go is needed to build Gitea; see https://go.dev/dl"
mkdir -p "$BIN"
exec 8>"$BIN/.gitea.lock"
flock 8
now=$({ echo "$VERSION $SUM"; go version; } | sha256sum | cut -d' ' -f1)
[[ $(cat "$BIN/.gitea" 2>/dev/null) != "$now" ]] || exit 0

source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
cd "$source"
module=$(go mod download -json "code.gitea.io/gitea@$VERSION")
sum=$(jq -r .Sum <<<"$module")
[[ $sum == "$SUM" ]] || die "Gitea $VERSION has the sum $sum, not $SUM"
cp -r --no-preserve=mode "$(jq -r .Dir <<<"$module")/." .
nice go build -trimpath -tags "sqlite sqlite_unlock_notify" -ldflags "-s -w -X main.Version=${VERSION#v}" \
    -o "$BIN/gitea.new" .
# What it reads when it runs; its API needs no more of its web pages.
rm -rf "$BIN/gitea-static"
mkdir "$BIN/gitea-static"
cp -r options templates "$BIN/gitea-static"
mkdir "$BIN/gitea-static/public"
mv "$BIN/gitea.new" "$BIN/gitea"
echo "$now" >"$BIN/.gitea"
