"""The page's files: what may not stand in them, and how large they may be."""

from __future__ import annotations

import hashlib
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
# Of the first view, as its files are; the terminal's library is not its own.
FIRST_VIEW_BYTES = 150 * 1024
IMPORT = re.compile(r"^(?:import|export)\b[^;]*?[\"'](\.[^\"']+)[\"'];", re.MULTILINE)
PAGES = sorted(path.stem for path in (WEB / "js" / "pages").glob("*.js"))


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


@pytest.mark.parametrize("page", PAGES)
def test_the_first_view_is_small(page: str) -> None:
    """Whichever page is opened first: what comes with it, after the form for the login."""
    pages = WEB / "js" / "pages"
    modules = with_imports(WEB / "js" / "app.js", pages / "login.js", pages / f"{page}.js")
    if page.startswith("pod-"):
        modules |= with_imports(pages / "pods.js", pages / "pod.js")
    files = {WEB / "index.html", WEB / "style.css", *modules}
    assert sum(path.stat().st_size for path in files) <= FIRST_VIEW_BYTES


def with_imports(*modules: Path) -> set[Path]:
    """These modules, and those that a browser fetches before it runs them."""
    found: set[Path] = set()
    ahead = list(modules)
    while ahead:
        path = ahead.pop()
        if path not in found and "vendor" not in path.relative_to(WEB).parts:
            found.add(path)
            named = IMPORT.findall(path.read_text())
            ahead += [(path.parent / name).resolve() for name in named]
    return found


def test_what_is_vendored_is_as_it_was_published() -> None:
    """Each file has the hash that stands beside it, and no other file is there."""
    for sums in WEB.rglob("SHA256SUMS"):
        lines = [line for line in sums.read_text().splitlines() if not line.startswith("#")]
        named = {name: digest for digest, name in (line.split() for line in lines)}
        there = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sums.parent.iterdir()
            if path != sums
        }
        assert there == named
    assert {path.parent.name for path in WEB.rglob("SHA256SUMS")} == {"xterm"}
