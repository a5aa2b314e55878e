#!/usr/bin/env bash
# Builds the S3-compatible server that tests of the archive start. It is built again only when what pins it or the
# compiler changed.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

command -v go >/dev/null || die "Go is needed to build the S3 server; see https://go.dev/dl"
mkdir -p "$BIN"
exec 8>"$BIN/.versitygw.lock"
flock 8
cd "$HERE/versitygw"
now=$({ cat go.mod go.sum; go version; } | sha256sum | cut -d' ' -f1)
if [[ $(cat "$BIN/.versitygw" 2>/dev/null) != "$now" ]]; then
    CGO_ENABLED=0 nice go build -trimpath -ldflags "-s -w" -o "$BIN/versitygw.new" github.com/versity/versitygw/cmd/versitygw
    mv "$BIN/versitygw.new" "$BIN/versitygw"
    echo "$now" >"$BIN/.versitygw"
fi
