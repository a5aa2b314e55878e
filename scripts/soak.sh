#!/usr/bin/env bash
# `make soak`: the property tests with many cases and a seed of their own every time, where `make test` repeats the same
# few. What fails is written to a `proptest-regressions` folder, which is to be committed with the repair: from then on
# `make test` tries it, too.
# `CASES=N make soak` takes another number of cases per test than 5000.
# Arguments go to `cargo test`, such as a part of tests' names.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

say "Property tests, ${CASES:-5000} cases each"
unset PROPTEST_RNG_SEED
# They are all among the unit tests; those that aren't property tests take a moment more.
PROPTEST_CASES=${CASES:-5000} cargo test --workspace --locked --no-fail-fast --lib --bins "$@"
