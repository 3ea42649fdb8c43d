#!/usr/bin/env bash
# health_check.sh [-o json] [AGENT...]: how the orchestrator and the agents are.
#
# Looks at the systemd unit, the port, /health, and for the orchestrator /ready. Exit code 0: all
# healthy; 1: one failed (its port is closed, or /health does not answer 200); 2: one is degraded
# (alive but not ready, or not run by its unit). Default: gpu_orchestrator analyst scout critic.
set -euo pipefail
# shellcheck source=deploy/systemd/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

json=
agents=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) show_help; exit 0 ;;
    -o) json=${2:-}; [ "$json" = json ] || fail 2 "-o takes json"; shift ;;
    -*) fail 2 "unknown option $1" ;;
    *) agents+=("$1") ;;
  esac
  shift
done
[ ${#agents[@]} -gt 0 ] || agents=(gpu_orchestrator analyst scout critic)
for agent in "${agents[@]}"; do port_of "$agent" >/dev/null; done

unit_of() { # active, inactive, failed ...; - where there is no systemd to ask
  local state
  state=$(systemctl is-active "justnews@$1" 2>/dev/null) || true
  case $state in '' | offline | unknown) echo - ;; *) echo "$state" ;; esac
}
open_port() { (exec 3<>"/dev/tcp/localhost/$1") 2>/dev/null && echo open || echo closed; }
status_of() { # HTTP status of a path, 000 without an answer
  curl --silent --output /dev/null --write-out '%{http_code}' --max-time 2 "http://localhost:$1$2" || true
}

command -v curl >/dev/null || fail 1 "curl is needed: apt-get install curl"
code=0
rows=()
for agent in "${agents[@]}"; do
  port=$(port_of "$agent") unit=$(unit_of "$agent") listens=$(open_port "$port")
  health=$(status_of "$port" /health) ready=-
  [ "$agent" != gpu_orchestrator ] || ready=$(status_of "$port" /ready)
  verdict=healthy
  if [ "$health" != 200 ]; then
    verdict=failed code=1
  elif [[ ! $ready =~ ^(200|-)$ || ! $unit =~ ^(active|-)$ ]]; then
    verdict=degraded
    [ $code = 1 ] || code=2
  fi
  rows+=("$agent $unit $port $listens $health $ready $verdict")
done

if [ -n "$json" ]; then
  comma=
  printf '{"schema": 1, "exit_code": %d, "agents": [' $code
  for row in "${rows[@]}"; do
    read -r agent unit port listens health ready verdict <<<"$row"
    printf '%s{"agent": "%s", "unit": "%s", "port": %d, "listens": %s, "health": %d, "ready": %s, "verdict": "%s"}' \
      "$comma" "$agent" "$unit" "$port" "$([ "$listens" = open ] && echo true || echo false)" \
      "$((10#$health))" "$([ "$ready" = - ] && echo null || echo "$((10#$ready))")" "$verdict"
    comma=', '
  done
  printf ']}\n'
else
  printf '%-18s %-10s %-6s %-8s %-8s %-7s %s\n' AGENT UNIT PORT LISTENS /health /ready ''
  for row in "${rows[@]}"; do
    # shellcheck disable=SC2086 # the columns of a row are words
    printf '%-18s %-10s %-6s %-8s %-8s %-7s %s\n' $row
  done
fi
exit $code
