"""Page at `/`: files of our own and of `static/vendor`, nothing from elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

from agent_sdk.policy import FIELDS, WORDS

FOLDER: Final = Path(__file__).parent / "static"

ASSETS: Final = "/static"

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy: scripts and styles are our files; the page calls this broker alone."""

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    """Return the page; it has no data of its own, so it needs no key."""
    return FileResponse(FOLDER / "index.html", headers={"content-security-policy": POLICY})


@router.get(f"{ASSETS}/policy-fields.json")
async def policy_fields() -> dict[str, Any]:
    """Return the form of the policy: its fields, and the words that they take by kind.

    It is the same for every pool, so it needs no key.
    """
    fields = [asdict(each) | {"accepts": each.accepts} for each in FIELDS.values()]
    return {"fields": fields, "words": WORDS}


def assets() -> StaticFiles:
    """Return the page's scripts, styles and pictures."""
    return StaticFiles(directory=FOLDER)
