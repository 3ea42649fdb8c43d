#!/usr/bin/env bash
# enable_all.sh [--dry-run] [AGENT...]: enable and start the orchestrator, then the agents.
#
# The agents (default: analyst scout critic) are started only once the orchestrator's /ready answers
# 200, for which it has TIMEOUT seconds (default 60). When it does not, nothing else is started and
# the exit code is 1. --dry-run prints what would be done.
set -euo pipefail
# shellcheck source=deploy/systemd/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

run=()
agents=()
for word in "$@"; do
  case $word in
    -h | --help) show_help; exit 0 ;;
    --dry-run) run=(echo) ;;
    -*) fail 2 "unknown option $word" ;;
    *) agents+=("$word") ;;
  esac
done
[ ${#agents[@]} -gt 0 ] || agents=(analyst scout critic)
for agent in "${agents[@]}"; do port_of "$agent" >/dev/null; done

start() { "${run[@]}" systemctl enable --now "justnews@$1"; }

start gpu_orchestrator || fail 1 "justnews@gpu_orchestrator did not start: journalctl -u justnews@gpu_orchestrator"
TIMEOUT=${TIMEOUT:-60} "${run[@]}" "$here/orchestrator-ready.sh" ||
  fail 1 "the orchestrator is not ready, so no agent was started"
for agent in "${agents[@]}"; do
  [ "$agent" = gpu_orchestrator ] || start "$agent"
done
