#!/usr/bin/env bash
# cargo nextest when it is installed, cargo test otherwise; the arguments say which tests.
set -euo pipefail
if command -v cargo-nextest >/dev/null; then
  exec cargo nextest run --locked --no-tests=pass "$@"
fi
exec cargo test --locked "$@"
