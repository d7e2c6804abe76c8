#!/usr/bin/env bash
# Builds the fuzz targets with the stable compiler and runs each for some seconds.
#   scripts/fuzz.sh [SECONDS [TARGET...]]
# libFuzzer comes with the crate libfuzzer-sys; its coverage needs compiler flags, but no nightly compiler. What a target
# finds is kept in fuzz/corpus, what breaks it in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${1:-10}
[ $# -eq 0 ] || shift
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target, build scripts and macros stay without these flags.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares"
# What is fuzzed is built from what is shipped.
cp ../Cargo.lock Cargo.lock
cargo build --release --bins --target "$host"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || for file in fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
failed=()
for target in "${targets[@]}"; do
  mkdir -p "corpus/$target" "artifacts/$target"
  seeds=()
  [ ! -d "seeds/$target" ] || seeds=("seeds/$target")
  echo "fuzzing $target for $seconds s"
  if ! "target/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 \
    -artifact_prefix="artifacts/$target/" "corpus/$target" "${seeds[@]}" >"artifacts/$target.log" 2>&1; then
    failed+=("$target")
    grep -v '^#' "artifacts/$target.log" | tail -n 30
  else
    tail -n 1 "artifacts/$target.log"
  fi
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "broken by what is in fuzz/artifacts: ${failed[*]}" >&2
  exit 1
fi
