#!/usr/bin/env bash
# Writes openapi/openapi.json from the code. With --check: fails when the file in the tree is another.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

file=openapi/openapi.json
mkdir -p openapi
new=$(mktemp)
trap 'rm -f "$new"' EXIT
cargo build --quiet --workspace --bins --locked
target/debug/kiln openapi >"$new"
if [ "${1:-}" = --check ]; then
  diff -u "$file" "$new" || die "$file isn't what the code says: run 'make openapi' and commit the result"
else
  cat "$new" >"$file"
fi
