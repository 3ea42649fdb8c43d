#!/bin/sh
# apprise sends a plain text to Telegram as HTML, unescaped, unless the call says body_format="text": "free < 2 GiB" arrives
# as a tag that Telegram refuses, at every try. With a Discord URL of ?format=markdown it looks for mentions in the text
# itself, and sends an "@everyone" that stands in it once more as a ping of its own, in a field that is called allow_mentions.
# Nothing is sent here: requests is told to keep what it would send.
# Seen with apprise 2.3.0: "HTML 'free < 2 GiB'", with body_format "HTML 'free &lt; 2 GiB'", "ping '👉 @everyone'".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check apprise==2.3.0
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import json
import sys

import apprise
import requests

kept = []


def request(*_, data=None, **__):
    kept.append(json.loads(data))
    answer = requests.Response()
    answer.status_code, answer._content = 200, b'{"ok": true}'
    return answer


requests.Session.request = request


def sent(url: str, body: str, **said: str) -> dict:
    one = apprise.Apprise()
    one.add(url)
    assert one.notify(body=body, **said)
    return kept[-1]


telegram = "tgram://123456789:abcdefghijklmnopqrstuvwxyz012345678/1234"
discord = "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js?format=markdown"
plain, escaped = sent(telegram, "free < 2 GiB"), sent(telegram, "free < 2 GiB", body_format="text")
ping = sent(discord, "agent @everyone has expired", body_format="text")
print(plain["parse_mode"], repr(plain["text"]), "|", escaped["parse_mode"], repr(escaped["text"]))
print("ping", repr(ping.get("content")), [name for name in ping if "mentions" in name])
as_html = plain["parse_mode"] == escaped["parse_mode"] == "HTML"
good = as_html and "free < 2" in plain["text"] and "free &lt; 2" in escaped["text"]
sys.exit(not (good and "@everyone" in ping.get("content", "") and "allow_mentions" in ping))
PYTHON
