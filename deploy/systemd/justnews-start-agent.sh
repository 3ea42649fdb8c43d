#!/usr/bin/env bash
# justnews-start-agent.sh NAME [OPTION...]: become the agent NAME, in the foreground.
#
# gpu_orchestrator is gpu-broker serve; analyst, scout and critic are in scripts/agents. Ports are
# those of deploy/ports.env unless the environment names others: GPU_ORCHESTRATOR_PORT,
# ANALYST_PORT and so on. JUSTNEWS_VENV is the virtual environment (default: .venv of this checkout,
# else what is on PATH). Options are the program's own.
set -euo pipefail
# shellcheck source=deploy/systemd/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ "${1:-}" != --help ] && [ "${1:-}" != -h ] || { show_help; exit 0; }
[ $# -gt 0 ] || fail 2 "name one agent: $(names | paste -sd' ')"
name=$1
port=$(port_of "$name")
shift

venv=${JUSTNEWS_VENV:-$home/.venv}
[ -d "$venv" ] && PATH=$venv/bin:$PATH
export PATH

GPU_ORCHESTRATOR_PORT=$(port_of gpu_orchestrator)
# Naming the orchestrator also keeps the agents' old GPU watchdogs off.
export GPU_ORCHESTRATOR_PORT GPU_ORCHESTRATOR_URL=${GPU_ORCHESTRATOR_URL:-http://localhost:$GPU_ORCHESTRATOR_PORT}

if [ "$name" = gpu_orchestrator ]; then
  command -v gpu-broker >/dev/null ||
    fail 1 "gpu-broker is not on PATH: make run in $home once, or set JUSTNEWS_VENV"
  exec gpu-broker serve "$@"
fi
program=$home/scripts/agents/$name.py
[ -f "$program" ] || fail 1 "$name has its port here, but its program belongs to another project"
command -v python >/dev/null || fail 1 "there is no python on PATH: set JUSTNEWS_VENV"
exec python "$program" --port "$port" "$@"
