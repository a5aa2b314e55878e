#!/usr/bin/env bash
# `make fuzz`: the targets of fuzz/ by libFuzzer, each for KILN_FUZZ_SECONDS (60). Arguments are targets; without any it
# is all of them. What was found interesting is kept in target/fuzz/corpus and begun from the next time; an input that
# makes a target fall is left in target/fuzz/found, and named with how to run it again.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

command -v c++ >/dev/null || die "libFuzzer is built by a C++ compiler: install g++"
tool cargo-fuzz 0.13.1 cargo-fuzz
out=$PWD/target/fuzz

# Archives and a builder's words are begun from real ones.
mkdir -p "$out/seeds/archive" "$out/seeds/progress"
tar --format=gnu -cf "$out/seeds/archive/gnu.tar" -C samples hello
tar --format=pax --mtime=@0 -cf "$out/seeds/archive/pax.tar" -C samples hello
tar --format=ustar -czf "$out/seeds/archive/ustar.tar.gz" -C samples hello
for sample in agent/src/progress/buildkit/samples/*.jsonl; do
  { printf '~' && cat "$sample"; } >"$out/seeds/progress/$(basename "$sample")"
done

# Without a sanitizer, the compiler of the rest will do; Rust's own checks are on.
run() { cargo fuzz run --sanitizer none --target-dir "$out/build" "$@"; }
[ $# -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
[ $# -eq 0 ] || targets=("$@")
say "Programs"
cargo fuzz build --sanitizer none --target-dir "$out/build"
failed=()
for target in "${targets[@]}"; do
  say "Target: $target"
  mkdir -p "$out/corpus/$target" "$out/found/$target" "$out/seeds/$target" "fuzz/seeds/$target"
  run "$target" "$out/corpus/$target" "fuzz/seeds/$target" "$out/seeds/$target" -- -max_total_time="${KILN_FUZZ_SECONDS:-60}" \
    -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 -verbosity=0 \
    -artifact_prefix="$out/found/$target/" || failed+=("$target")
done
[ ${#failed[@]} -eq 0 ] || die "these fell: ${failed[*]}; the inputs are in target/fuzz/found"
