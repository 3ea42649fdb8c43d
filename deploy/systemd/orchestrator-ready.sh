#!/usr/bin/env bash
# orchestrator-ready.sh [HOST] [PORT]: wait until the orchestrator can grant leases.
#
# Asks /ready until it answers 200, at most TIMEOUT seconds (default 30). Exit code 0 when it is
# ready; 1 when it is not, with the reason that it gave last.
set -euo pipefail
# shellcheck source=deploy/systemd/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ "${1:-}" != --help ] && [ "${1:-}" != -h ] || { show_help; exit 0; }
url=http://${1:-localhost}:${2:-$(port_of gpu_orchestrator)}/ready
until_s=$((SECONDS + ${TIMEOUT:-30}))

while true; do
  if said=$(curl --silent --show-error --fail-with-body --max-time 2 "$url" 2>&1); then
    echo "ready: $url"
    exit 0
  fi
  [ $SECONDS -lt $until_s ] || break
  sleep 0.2
done
fail 1 "$url is not ready after ${TIMEOUT:-30} s: $said"
