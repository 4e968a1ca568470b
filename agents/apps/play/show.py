"""What a walk looks like: plain values for a page to draw, and the film of it."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agents.apps.play.session import Session
from agents.apps.play.walk import Node, Real
from worldmodel.dream import films
from worldmodel.log import enlarged, gif

WINDOW = 200  # steps that a curve shows, the newest
CURVES = ("reward", "goes_on", "value", "surprise")
REAL = (86, 180, 233)  # the colour of what is not imagined
SIDE, GAP = 224, 6  # of a frame in a GIF: pixels of the shorter side, and between two pictures
LIMIT = 600  # frames of one GIF: a minute of film, and about 100 MB while it is made


def shown(session: Session, view: str) -> dict[str, Any]:
    """Everything that the page draws of this moment: pictures as PNG addresses, numbers (None
    where there is none), curves of the path to here, and how far the branches go."""
    view, node = session.view(view), session.node
    path = session.path()
    return {
        "view": view,
        "step": node.depth,
        "pictures": pictures(session, view),
        "cameras": cameras(session),
        "numbers": numbers(node),
        "curves": curves(path, view),
        "branches": branches(session),
        "mask": None if session.mask is None else session.mask.tolist(),
        "note": note(session, view),
        "about": session.about,
    }


def pictures(session: Session, view: str) -> list[dict[str, str]]:
    """Titles, kinds (dream, real, error, plan) and PNG addresses, in the order of the page."""
    node = session.node
    real = node.real
    title = "Dream" if node.depth else "Start, as the model sees it"
    parts = []
    if view != "dream":
        last = _last_real(session)
        ended = real is None or real.moment.ended
        parts.append(("Reality (ended)" if ended else "Reality", "real", last.picture))
    dream = node.sight.picture
    if view != "real":
        assert dream is not None  # else the view is of reality alone
        parts.append((title, "dream", dream))
        if view == "both" and real is not None and real.picture.shape == dream.shape:
            parts.append(("Difference", "error", films.difference(dream, real.picture)))
        elif view == "both":
            parts.append(("Difference: none to take", "error", np.full_like(dream, 40)))
    plan = session.plans.get(node.number)
    if plan is not None:
        parts.append(("The plan that led here, as it was imagined", "plan", plan))
    return [{"title": t, "kind": k, "src": png(p)} for t, k, p in parts]


def cameras(session: Session) -> list[str]:
    """The names of the images that stand side by side in each picture; none for a single one."""
    names = session.world.spec.keys("image")
    return names if len(names) > 1 else []


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
    names = (*CURVES, "real_reward") if view != "dream" else CURVES
    first = path[-len(part)].depth
    return {"first": first, **{name: [one[name] for one in part] for name in names}}


def branches(session: Session) -> dict[str, Any]:
    """How far every branch goes, where it leaves its parent, and where one is."""
    rows = []
    for branch in session.branches:
        tip, fork = session.nodes[branch.tip], session.nodes[branch.fork]
        place = {"fork": fork.depth, "tip": tip.depth}
        rows.append({"label": branch.label, "parent": branch.parent, **place})
    return {"rows": rows, "on": session.on, "depth": session.node.depth}


def note(session: Session, view: str) -> str:
    """One line about what is special here, or ""."""
    node, real = session.node, session.node.real
    if session.reality is not None and not session.reality.exact:
        return (
            "This environment did not repeat itself: after going back, reality took another "
            "course than the one seen before."
        )
    if real is not None and real.moment.ended and not session.world.shows:
        return "The episode ends here."
    if session.has_real and real is None:
        return "The real episode is over here; the dream goes on alone."
    if real is not None and real.moment.ended:
        how = "terminated" if real.moment.terminated else "cut off"
        return f"The real episode ends here ({how}); from here the dream goes on alone."
    if session.world.shows and node.sight.goes_on is not None and node.sight.goes_on < 0.5:
        return "The model believes that the episode ends here; you may dream on."
    return ""


def film_of(session: Session, view: str = "dream", fps: float = 10.0) -> bytes:
    """What was seen from the context to where one is, as an animated GIF of at most the last LIMIT
    frames, all of one size."""
    view = session.view(view)
    names = ("real", "seen") if view == "both" else ("real",)
    frames = [_drawn(dict.fromkeys(names, picture), "context") for picture in session.lead]
    last = session.nodes[0].real
    for node in session.path()[1:]:
        last = node.real or last
        frames.append(_frame(node, last, view))
    return gif(frames[-LIMIT:], max(1, round(fps)))


def save_film(
    session: Session, run: Path, view: str = "dream", fps: float = 10.0
) -> tuple[Path, bytes]:
    """The film, written to `<run>/play/`: its place and its bytes. Raises OSError where the run
    folder cannot be written to."""
    data = film_of(session, view, fps)
    stem = f"{session.view(view)}-{session.branches[session.on].label}"
    return write_numbered(run / "play", stem, data), data


def write_numbered(folder: Path, stem: str, data: bytes) -> Path:
    """Write to the first free name `stem-001.gif`, `stem-002.gif`, ... of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 100_000):
        path = folder / f"{stem}-{number:03d}.gif"
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            continue
        return path
    raise OSError(f"'{folder}' has no free name left for a film.")


def png(picture: np.ndarray) -> str:
    """A uint8 picture [H, W, 3] as the text of a PNG data address."""
    ok, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    assert ok
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


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


def _frame(node: Node, last: Real | None, view: str) -> np.ndarray:
    """One moment of a film; last: the newest real moment up to there."""
    words = [f"step {node.depth}"]
    if node.sight.reward is not None:
        words.append(f"reward {node.sight.reward:+.2f}")
    if node.real is not None and node.real.moment.reward is not None and view != "dream":
        words.append(f"really {node.real.moment.reward:+.2f}")
    shots = {}
    if view != "dream" and last is not None:
        shots["real" if node.real else "real (ended)"] = last.picture
    if view != "real" and node.sight.picture is not None:
        shots["dream"] = node.sight.picture
    return _drawn(shots, "   ".join(words))


def _drawn(pictures: dict[str, np.ndarray], text: str) -> np.ndarray:
    """uint8 [H', W', 3]: pictures by title side by side over a line of text."""
    tiles = []
    for title, picture in pictures.items():
        big = enlarged(picture, SIDE)
        head = films.lines([title], big.shape[1], films.MARK if title == "dream" else REAL)
        tiles.append(np.concatenate([head, big], 0))
    row = films.tiled(tiles, len(tiles), GAP)
    return np.concatenate([row, films.lines([text], row.shape[1])], 0)
