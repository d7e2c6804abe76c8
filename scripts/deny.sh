#!/usr/bin/env bash
# Checks dependencies with cargo-deny. It takes minutes to build, so that it is only built here when that was asked for
# with WHARF_INSTALL_DENY=1 (CI keeps it in cargo's own bin directory from then on).
set -euo pipefail
if ! command -v cargo-deny >/dev/null && [ "${WHARF_INSTALL_DENY:-}" = 1 ]; then
  cargo install --locked cargo-deny || echo "cargo-deny could not be built" >&2
fi
if ! command -v cargo-deny >/dev/null; then
  echo "cargo-deny is NOT installed: licences and advisories were NOT checked." >&2
  echo "Install it with: cargo install --locked cargo-deny" >&2
  exit 0
fi
# The advisory database lives on a public server; where that can't be reached, the rest is checked all the same.
if ! cargo deny --all-features fetch db >/dev/null 2>&1; then
  echo "The advisory database can't be reached: advisories were NOT checked." >&2
  exec cargo deny --all-features --offline check bans licenses sources
fi
exec cargo deny --all-features check
