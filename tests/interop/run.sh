#!/usr/bin/env bash
# Drives the program with real clients. Needs Node 20, npm and Python 3.
#   run.sh              everything (about three minutes on two cores)
#   run.sh FILE...      only these test files
# YRS_WEBSOCKET_SERVER names the program; default: target/release/yrs-websocket-server of this tree.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export YRS_WEBSOCKET_SERVER=${YRS_WEBSOCKET_SERVER:-$(cd ../.. && pwd)/target/release/yrs-websocket-server}
[ -x "$YRS_WEBSOCKET_SERVER" ] || { echo "no program at $YRS_WEBSOCKET_SERVER: cargo build --release first" >&2; exit 2; }
[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --omit=optional --no-audit --no-fund
# A test file whose process does not end fails here, and does not stop everything behind it.
run() { timeout --verbose $([ -t 0 ] && echo --foreground) --kill-after=10 1200 node --test --test-reporter=spec --test-concurrency="$1" "${@:2}"; }
if [ $# -gt 0 ]; then run 1 "$@"; exit; fi
status=0
run 3 idle.test.mjs wire.test.mjs sync.test.mjs durability.test.mjs traces.test.mjs || status=1
# Measures memory and latency, so nothing else runs beside it.
run 1 load.test.mjs || status=1
exit $status
