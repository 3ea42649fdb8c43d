#!/bin/sh
# While podman stops a container that does not heed its stop signal, for up to the time of --time, the container's processes
# live and its state is "stopping". `podman ps` without filters and `podman ps --filter status=running` list it no longer, and
# `--filter status=stopping` is an error: no filter finds it. A program that asks whether its container still runs, to give
# away what it used, is told no while it runs. `podman ps --all --format '{{.State}}'` tells.
# It needs podman and runc, as root, and downloads nothing: the container's programs are this machine's /usr, mounted read-only.
# Seen with podman 4.3.1 (Debian 12): "pid alive: yes; state: stopping; ps: none; status=running: none; status=stopping: error".
set -eu
for program in podman runc; do
  command -v "$program" >/dev/null || { echo "this needs $program: apt-get install podman runc"; exit 2; }
done
work=$(mktemp -d)
stopper=
stop() {
  podman kill --all >/dev/null 2>&1 || true
  if [ -n "$stopper" ]; then wait "$stopper" || true; fi
  podman rm --all --force >/dev/null 2>&1 || true
  rm -rf "$work"
}
cat >"$work/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
cat >"$work/storage.conf" <<CONF
[storage]
driver = "vfs"
graphroot = "$work/root"
runroot = "$work/run"
CONF
# podman sees nothing but this folder from here on, so that --all is what this script made
export CONTAINERS_CONF="$work/containers.conf" CONTAINERS_STORAGE_CONF="$work/storage.conf" XDG_RUNTIME_DIR="$work"
trap stop EXIT
mkdir "$work/image"
for name in bin lib lib64 sbin; do
  if [ -e "/usr/$name" ]; then ln -s "usr/$name" "$work/image/$name"; fi
done
tar -C "$work/image" -cf "$work/image.tar" .
podman import --quiet "$work/image.tar" localhost/system:1 >/dev/null
podman --version
id=$(podman run --detach -v /usr:/usr:ro localhost/system:1 sh -c 'trap "" TERM; while :; do sleep 1; done')
pid=$(podman inspect --format '{{.State.Pid}}' "$id")
before=$(podman ps --quiet --filter status=running | wc -l)
sleep 1 # the shell has set its trap
podman stop --time 20 "$id" >/dev/null 2>&1 &
stopper=$!
state=
for _ in $(seq 100); do
  state=$(podman ps --all --format '{{.State}}' | tr '[:upper:]' '[:lower:]')
  if [ "$state" = stopping ]; then break; fi
  sleep 0.1
done
listed() {
  if found=$(podman ps --quiet "$@" 2>/dev/null); then
    if [ -n "$found" ]; then echo listed; else echo none; fi
  else
    echo error
  fi
}
seen="ps: $(listed); status=running: $(listed --filter status=running); status=stopping: $(listed --filter status=stopping)"
if kill -0 "$pid" 2>/dev/null; then alive=yes; else alive=no; fi
seen="pid alive: $alive; state: $state; $seen"
echo "before: $before listed as running"
echo "$seen"
[ "$before" = 1 ] || exit 1
[ "$seen" = "pid alive: yes; state: stopping; ps: none; status=running: none; status=stopping: error" ]
