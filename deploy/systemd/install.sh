#!/usr/bin/env bash
# install.sh: put units and environment files in their places; starts nothing.
#
# This checkout is run from where it lies, so let it lie where every user may read it (/opt/justnews,
# say). DESTDIR is put before every path. A file in /etc/justnews that is there stays as it is.
set -euo pipefail
# shellcheck source=deploy/systemd/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ "${1:-}" != --help ] && [ "${1:-}" != -h ] || { show_help; exit 0; }
units=${DESTDIR:-}/etc/systemd/system
config=${DESTDIR:-}/etc/justnews

install -d "$units" "$config"
sed "s|/opt/justnews|$home|" "$here/justnews@.service" >"$units/justnews@.service"
for dropin in "$here"/justnews@*.service.d; do
  install -d "$units/$(basename "$dropin")"
  install -m 644 "$dropin"/*.conf "$units/$(basename "$dropin")"
done
for example in "$here"/examples/*.env.example; do
  target=$config/$(basename "$example" .example)
  [ -e "$target" ] || install -m 640 "$example" "$target"
done
echo "installed in $units and $config; next:"
echo "  edit $config/gpu_orchestrator.env (it ships SAFE_MODE=true: no lease gets a GPU)"
echo "  systemctl daemon-reload && $here/enable_all.sh gpu_orchestrator"
echo "  (without a name it starts the example's agents too)"
