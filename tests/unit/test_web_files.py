"""The page's files: what may not stand in them, and how large they may be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "podyd" / "web"
OWN = sorted(
    path
    for path in WEB.rglob("*")
    if path.suffix in (".js", ".html", ".css") and "vendor" not in path.relative_to(WEB).parts
)
# What makes markup, code or requests of text, or is refused by the page's Content-Security-Policy.
FORBIDDEN = {
    "markup from text": r"(inner|outer)HTML|insertAdjacentHTML|document\.write|srcdoc|DOMParser"
    r"|createContextualFragment",
    "code from text": r"\beval\s*\(|new Function\b|setTimeout\(\s*[\"'`]|javascript:",
    "an inline handler or style": r"\son[a-z]+=\"|\sstyle=",
    "another origin": r"[\"'`(]\s*(https?:)?//(?!www\.w3\.org/2000/svg)",
    "an absolute URL": r"(href|src)=\"/|fetch\(\s*[\"'`]/|import\(?\s*[\"'`]/|url\(\s*[\"']?/",
}
# Of the first view, as its files are.
FIRST_VIEW_BYTES = 150 * 1024


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_has(what: str) -> None:
    assert OWN
    found = [
        f"{path.relative_to(WEB)}:{number}: {line.strip()}"
        for path in OWN
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(FORBIDDEN[what], line)
    ]
    assert not found


def test_the_first_view_is_small() -> None:
    """All modules of the page's own count, though some are only loaded with their page."""
    assert sum(path.stat().st_size for path in OWN) <= FIRST_VIEW_BYTES
