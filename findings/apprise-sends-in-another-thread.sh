#!/bin/sh
# Apprise().notify() of a single service sends in a thread of a shared pool, although the service's asset says
# async_mode=False, which its documentation calls one at a time, in order: a service's own time limit moves it there. What the
# caller has bound to its thread (thread-locals, a guard of its sockets, a transaction) is not there. The service's own
# notify() sends in the calling thread.
# Seen with apprise 2.3.0: "Apprise().notify(): another thread, service.notify(): the same".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check apprise==2.3.0
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import apprise
import requests

sends = []
send = requests.Session.send


def noted(*args, **options):
    sends.append(threading.get_ident())
    return send(*args, **options)


requests.Session.send = noted


class Taker(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Taker)
threading.Thread(target=server.serve_forever, daemon=True).start()
asset = apprise.AppriseAsset(async_mode=False)
service = apprise.Apprise.instantiate(f"ntfy://127.0.0.1:{server.server_port}/gpus", asset=asset)
assert apprise.Apprise(service, asset=asset).notify(body="one")
assert service.notify(body="two")
through, direct = (ident == threading.get_ident() for ident in sends)
words = {True: "the same", False: "another thread"}
print(f"Apprise().notify(): {words[through]}, service.notify(): {words[direct]}")
sys.exit(through or not direct)
PYTHON
