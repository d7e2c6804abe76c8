#!/usr/bin/env bash
# Runs the unit tests or the end-to-end tests, all or those that have one of the words in their names:
#   scripts/cargo-test.sh unit|e2e [word...]
# With cargo nextest where it is installed. The whole workspace is built in either case: for single packages cargo would
# choose other features of their dependencies, and build these once more.
set -euo pipefail
suite=${1:?unit or e2e}
shift
promises='package(wharf-e2e) & binary(promises)'
if command -v cargo-nextest >/dev/null; then
  case $suite in
    unit) tests="not ($promises)" ;;
    e2e) tests=$promises ;;
    *) echo "$0: \"$suite\" is neither unit nor e2e" >&2 && exit 2 ;;
  esac
  exec cargo nextest run --locked --workspace --no-tests=pass -E "$tests" "$@"
fi
case $suite in
  unit)
    cargo test --locked --workspace --exclude wharf-e2e "$@"
    cargo test --locked -p wharf-e2e --lib "$@"
    ;;
  e2e) cargo test --locked -p wharf-e2e --test promises "$@" ;;
  *) echo "$0: \"$suite\" is neither unit nor e2e" >&2 && exit 2 ;;
esac
