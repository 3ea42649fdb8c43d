#!/bin/sh
# A uvicorn whose terminal is closed (SIGHUP) is killed at once: the application's shutdown does not run, and requests are cut
# off, where SIGTERM and SIGINT run it. With --workers SIGHUP means something else again: the workers are started anew.
# Seen with uvicorn 0.54.0: "SIGTERM: shutdown ran, exit -15; SIGHUP: no shutdown, exit -1".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0
cat > "$work/app.py" <<'PYTHON'
async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.complete"})
    print("started", flush=True)
    await receive()
    print("shutdown", flush=True)
    await send({"type": "lifespan.shutdown.complete"})
PYTHON
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import signal
import subprocess
import sys

command = [sys.executable, "-m", "uvicorn", "app:app", "--port", "0", "--log-level", "critical"]
ran = {}
for name in (signal.SIGTERM, signal.SIGHUP):
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "started\n"
        server.send_signal(name)
        rest, code = server.stdout.read(), server.wait(20)
    ran[name] = "shutdown" in rest
    print(f"{name.name}: {'shutdown ran' if ran[name] else 'no shutdown'}, exit {code}")
sys.exit(not ran[signal.SIGTERM] or ran[signal.SIGHUP])
PYTHON
