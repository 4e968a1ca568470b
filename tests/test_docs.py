"""README and docs/: what they link to, and every file and name that they mention, is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:worldmodel|agents|scripts|tests|configs)/[\w/.\-]+)`")
NAME = re.compile(r"`((?:worldmodel|agents|scripts)(?:\.\w+)+)`")


def anchors(page: Path) -> set[str]:
    """What can be linked to in a page, as GitHub names its headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


def defined(name: str) -> bool:
    """Whether a dotted name is a module, or a word of the module that it begins with."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:count])
        for source in (place.with_suffix(".py"), place / "__init__.py"):
            if source.is_file():
                rest = parts[count:]
                return not rest or re.search(rf"\b{rest[0]}\b", source.read_text()) is not None
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_all_that_a_page_mentions_is_there(page: Path) -> None:
    text, wrong = page.read_text(), []
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    wrong += [path for path in FILE.findall(text) if not (ROOT / path).exists()]
    wrong += [name for name in NAME.findall(text) if not defined(name)]
    assert not wrong
