"""What a walk looks like: plain values for a page to draw, and the film of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from agents.apps.play.film import Frame, error_between, film, png, write_numbered
from agents.apps.play.session import Node, Real, Session

WINDOW = 200  # steps that a curve shows, the newest
# name -> what it is called, and in what unit.
CURVES = {
    "reward": "reward",
    "goes_on": "continue",
    "value": "value",
    "surprise": "surprise",
}


def shown(session: Session, view: str) -> dict[str, Any]:
    """Everything that the page draws of this moment: pictures as PNG addresses, numbers (None
    where there is none), curves of the path to here, and how far the branches go."""
    view, node = session.view(view), session.node
    path = session.path()
    return {
        "view": view,
        "step": node.depth,
        "pictures": pictures(session, view),
        "numbers": numbers(node),
        "curves": curves(path, view),
        "branches": branches(session),
        "mask": None if session.mask is None else session.mask.tolist(),
        "note": note(session, view),
        "about": session.about,
    }


def pictures(session: Session, view: str) -> list[dict[str, str]]:
    """Titles, kinds (dream, real, error) and PNG addresses, in the order in which they stand."""
    node = session.node
    dream, real = node.sight.picture, node.real
    title = "Dream" if node.depth else "Start, as the model sees it"
    parts = []
    if view != "dream":
        last = _last_real(session)
        ended = real is None or real.moment.ended
        parts.append(("Reality (ended)" if ended else "Reality", "real", last.picture))
    if view != "real":
        parts.append((title, "dream", dream))
    if view == "both" and real is not None and real.picture.shape == dream.shape:
        parts.append(("Difference", "error", error_between(dream, real.picture)))
    elif view == "both":
        parts.append(("Difference: none to take", "error", np.full_like(dream, 40)))
    return [{"title": t, "kind": k, "src": png(p)} for t, k, p in parts]


def numbers(node: Node) -> dict[str, float | None]:
    """The figures of one moment; rewards and continue belong to the step that led here."""
    real = node.real
    return {
        "reward": finite(node.sight.reward),
        "goes_on": finite(node.sight.goes_on),
        "value": finite(node.sight.value),
        "surprise": finite(real.surprise) if real else None,
        "news": finite(real.news) if real else None,
        "real_reward": finite(real.moment.reward) if real else None,
        "real_goes_on": None if real is None or not node.depth else float(not real.moment.ended),
    }


def curves(path: list[Node], view: str) -> dict[str, Any]:
    """The newest WINDOW moments of a path: where they begin, and one list for each figure."""
    part = [numbers(node) for node in path[-WINDOW:]]
    names = [*CURVES, "real_reward"] if view != "dream" else list(CURVES)
    first = path[-len(part)].depth
    return {"first": first, **{name: [one[name] for one in part] for name in names}}


def branches(session: Session) -> dict[str, Any]:
    """How far every branch goes, where it leaves its parent, and where one is."""
    rows = []
    for branch in session.branches:
        tip, fork = session.nodes[branch.tip], session.nodes[branch.fork]
        rows.append(
            {
                "label": branch.label,
                "parent": branch.parent,
                "fork": fork.depth,
                "tip": tip.depth,
            }
        )
    return {"rows": rows, "on": session.on, "depth": session.node.depth}


def note(session: Session, view: str) -> str:
    """One line about what is special here, or ""."""
    node, real = session.node, session.node.real
    if session.reality is not None and not session.reality.exact:
        return (
            "This environment did not repeat itself: after going back, reality took another "
            "course than the one seen before."
        )
    if session.has_real and real is None:
        return "The real episode is over here; the dream goes on alone."
    if real is not None and real.moment.ended:
        how = "terminated" if real.moment.terminated else "cut off"
        return f"The real episode ends here ({how}); from here the dream goes on alone."
    if node.sight.goes_on is not None and node.sight.goes_on < 0.5:
        return "The model believes that the episode ends here; you may dream on."
    return ""


def film_of(session: Session, view: str = "dream", fps: float = 10.0) -> bytes:
    """What was seen from the context to where one is, as an animated GIF."""
    view = session.view(view)
    frames = [_context_frame(picture, view) for picture in session.lead]
    last = session.nodes[0].real
    for node in session.path()[1:]:
        last = node.real or last
        frames.append(_frame(node, last, view))
    return film(frames, fps)


def save_film(
    session: Session, run: Path, view: str = "dream", fps: float = 10.0
) -> tuple[Path, bytes]:
    """The film, written to `<run>/play/`: its place and its bytes. Raises OSError where the run
    folder cannot be written to."""
    data = film_of(session, view, fps)
    stem = f"{session.view(view)}-{session.branches[session.on].label}"
    return write_numbered(run / "play", stem, data), data


def finite(value: float | None) -> float | None:
    """The value, or None where there is none to draw."""
    return None if value is None or not math.isfinite(value) else float(value)


def _last_real(session: Session) -> Real:
    """The newest real moment up to where one is."""
    node = session.node
    while node.real is None:
        assert node.parent is not None
        node = session.nodes[node.parent]
    return node.real


def _context_frame(picture: np.ndarray, view: str) -> Frame:
    names = ("real", "seen") if view == "both" else ("real",)
    return Frame(dict.fromkeys(names, picture), frozenset(), "context")


def _frame(node: Node, last: Real | None, view: str) -> Frame:
    """One moment of a film; last: the newest real moment up to there."""
    words = [f"step {node.depth}"]
    if node.sight.reward is not None:
        words.append(f"reward {node.sight.reward:+.2f}")
    if node.real is not None and node.real.moment.reward is not None and view != "dream":
        words.append(f"really {node.real.moment.reward:+.2f}")
    shots = {}
    if view != "dream" and last is not None:
        shots["real" if node.real else "real (ended)"] = last.picture
    if view != "real":
        shots["dream"] = node.sight.picture
    return Frame(shots, frozenset({"dream"}), "   ".join(words))
