"""Links from a page to a file of the repository, made absolute where the page is shown elsewhere.

In the repository all links are relative. The site of `docs/` (a hook of mkdocs) and the package's
description (a hook of hatch) show pages without the files beside them, so links to those become
addresses in the repository that `pyproject.toml` names. A file that is not there is an error.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?")
"""A link to a file, with its heading."""

log = logging.getLogger("mkdocs.hooks.docs_links")  # below mkdocs': a warning fails a strict build


def repository() -> str:
    """Return the address of the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address: str = project["urls"]["Repository"]
    return address


def absolute(text: str, folder: Path, stays: Callable[[Path], bool]) -> str:
    """Return a page's text with links to files in the repository's address.

    Args:
        text: Markdown.
        folder: the page's own, from which its links lead.
        stays: true for a file to which the link stays relative.

    Raises:
        FileNotFoundError: a link leads to no file.
    """
    base = repository()

    def addressed(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / match[1]))
        if not target.exists():
            raise FileNotFoundError(f"a link leads to {match[1]}, which is not there")
        if stays(target):
            return match[0]
        kind = "raw" if target.suffix == ".png" else "tree" if target.is_dir() else "blob"
        return f"]({base}/{kind}/main/{target.relative_to(ROOT)}{match[2] or ''}"

    return LINK.sub(addressed, text)


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Let links of a page lead out of the site; called by mkdocs for each page."""
    folder = Path(page.file.abs_src_path).parent
    try:
        return absolute(markdown, folder, lambda target: target.is_relative_to(DOCS))
    except FileNotFoundError as missing:
        log.warning("%s: %s", page.file.src_uri, missing)
        return markdown


class PackageReadme(MetadataHookInterface):
    """The description of the package: README.md with absolute links."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the description; called by hatch when it builds a package."""
        text = absolute((ROOT / "README.md").read_text(encoding="utf-8"), ROOT, lambda _: False)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
