#!/bin/sh
# standardwebhooks signs the wall clock of an aware datetime as if it were UTC: of the same moment, a datetime in another zone
# has another signature, and one that the receiver's verify() refuses beside the moment's own timestamp. And a secret in
# URL-safe base64 is taken without a word: '-' and '_' are dropped, so it signs with a shorter key than any library that
# reads that alphabet.
# Seen with standardwebhooks 1.1.0: "utc: verified", "+02:00: No matching signature found", "32 bytes of secret, 29 of key".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check standardwebhooks==1.1.0
"$work/venv/bin/python" - <<'PYTHON'
import base64
import sys
from datetime import UTC, datetime, timedelta, timezone

from standardwebhooks import Webhook, WebhookVerificationError

now, body = datetime.now(UTC), '{"type": "gpu.expired"}'
webhook = Webhook("whsec_" + base64.b64encode(bytes(range(32))).decode())


def verified(moment: datetime) -> str:
    """Sign at a moment, send that moment's timestamp, and verify at once."""
    headers = {
        "webhook-id": "1",
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": webhook.sign("1", moment, body),
    }
    try:
        webhook.verify(body, headers)
    except WebhookVerificationError as error:
        return str(error)
    return "verified"


here = now.astimezone(timezone(timedelta(hours=2)))
assert here == now
first, second = verified(now), verified(here)
secret = bytes([0xFB, 0xEF, 0xBE]) + bytes(29)
key = Webhook("whsec_" + base64.urlsafe_b64encode(secret).decode())._whsecret
print("utc:", first, "| +02:00:", second, "|", len(secret), "bytes of secret,", len(key), "of key")
sys.exit(first != "verified" or second != "No matching signature found" or len(key) >= len(secret))
PYTHON
