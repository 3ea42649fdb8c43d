"""Variables that the examples of deploy/ may set."""

from __future__ import annotations

import re
from pathlib import Path

from agent_sdk import settings as sdk_settings
from broker.settings import Settings

KNOWN = set(re.findall(r'env\.get\("(\w+)"\)', Path(sdk_settings.__file__).read_text())) | {
    str(choice)
    for field in Settings.model_fields.values()
    for choice in getattr(field.validation_alias, "choices", ())
}
"""Every variable that is read."""
