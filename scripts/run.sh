#!/usr/bin/env bash
# `make run`: installs what is missing, builds, and starts `kiln dev`, which builds samples/hello through the public API
# and then serves until Ctrl-C. Arguments go to `kiln dev`.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
scripts/install.sh

say "Building kiln (some minutes the first time)"
# Not --release: it takes far longer to build, and here nobody waits for kiln's own code.
cargo build --workspace --bins --locked
exec target/debug/kiln dev --sample samples/hello "$@"
