"""One page that holds everything: pictures inlined, no network, no scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

KINDS = {".png": "image/png", ".gif": "image/gif"}
SHAPES = ("film", "plot", "wide")  # see Picture
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1c1c; --soft: #5b5b5b; --line: #d5d5d5;
  --card: #f5f5f3; --accent: #b45f00; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e9e9e6; --soft: #a9adb3;
  --line: #3a3e44; --card: #202327; --accent: #ff9a2e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 .25rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
p { max-width: 44rem; margin: .5rem 0; }
.number { font-size: 1.15rem; border-left: .3rem solid var(--accent); padding: .25rem .75rem;
  background: var(--card); }
table { border-collapse: collapse; font-size: .95rem; }
td { padding: .15rem .75rem .15rem 0; vertical-align: top; }
td:first-child { color: var(--soft); white-space: nowrap; }
.grid { display: grid; gap: 1rem; margin: 1rem 0; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(var(--least), 100%), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .5rem; min-width: 0; }
figcaption { color: var(--soft); font-size: .9rem; padding-top: .35rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: .25rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
.wide img { max-width: none; }
.films img { width: 100%; max-width: 9rem; }
footer { color: var(--soft); font-size: .85rem; margin-top: 2rem; border-top: 1px solid var(--line);
  padding-top: .5rem; }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG or GIF with its words. shape: "plot" (several in a row where there is room), "film"
    (small ones side by side) or "wide" (its own size, to be scrolled)."""

    path: Path
    alt: str
    caption: str = ""
    shape: str = "plot"


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs and pictures."""

    title: str
    text: Sequence[str]
    pictures: list[Picture] = field(default_factory=list)


def write(
    path: Path,
    title: str,
    headlines: Sequence[str],
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    foot: str,
) -> Path:
    """The page as one HTML file. Only words and pictures that are given come into it."""
    rows = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in facts)
    numbers = "".join(f'<p class="number">{escape(words)}</p>\n' for words in headlines)
    body = "".join(_section(section) for section in sections)
    path.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n<h1>{escape(title)}</h1>\n{numbers}"
        f"<table>{rows}</table>\n{body}</main>\n<footer>{escape(foot)}</footer>\n</body>\n</html>\n",
        encoding="utf-8",
    )
    return path


def _section(section: Section) -> str:
    text = "".join(f"<p>{escape(words)}</p>\n" for words in section.text)
    out = [f"<section>\n<h2>{escape(section.title)}</h2>\n{text}"]
    grids = {"film": ("8rem", "grid films"), "plot": ("19rem", "grid")}
    for shape, (least, name) in grids.items():
        chosen = [picture for picture in section.pictures if picture.shape == shape]
        if chosen:
            inner = "".join(map(_figure, chosen))
            out.append(f'<div class="{name}" style="--least: {least}">{inner}</div>\n')
    wide = [picture for picture in section.pictures if picture.shape == "wide"]
    # Focusable, so that a keyboard can scroll it.
    out += [
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(p.alt)}">'
        f"{_figure(p)}</div>\n"
        for p in wide
    ]
    return "".join(out) + "</section>\n"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    kind = KINDS[picture.path.suffix]
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return (
        f'<figure><img src="data:{kind};base64,{data}" alt="{escape(picture.alt)}">'
        f"{caption}</figure>\n"
    )
