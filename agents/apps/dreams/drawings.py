"""Dreams drawn: whole episodes open loop beside what happened, and several futures from one real
frame, under the policy and under random actions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.apps.dreams.episodes import DreamConfig, Experience
from agents.apps.dreams.page import Picture, Section
from agents.base import Policy, random_actions
from worldmodel import dream, plots, progress, seeding, tree
from worldmodel.capabilities import Masks
from worldmodel.dream import films, metrics
from worldmodel.log import enlarged, gif, write_picture, write_video
from worldmodel.types import MASK_KEY, Batch, EnvSpec

SIDE, VIDEO_SIDE = 96, 256  # pixels of an image in pictures and GIFs, and in the video
CURVES = 6  # entries of a vector that are drawn, at most
COLUMNS = 7  # imagined frames of each future in the picture
GAP = 3  # pixels between images
TITLES = {"reward": "Imagined reward", "cont": "P(episode goes on)", "value": "Value"}


def draw_strips(
    model: Any, spec: EnvSpec, lived: Experience, settings: DreamConfig, folder: Path
) -> Section | None:
    """The strips section, its files written; None where the model decodes nothing."""
    pictures: list[Picture] = []
    context = settings.context
    for number in progress.each(lived.shown(settings), "drawing strips and films"):
        batch = lived.batch([number], 0, settings.rows).to(dream.device_of(model))
        loop = dream.open_loop(model, batch, context)
        frames = films.film_of(spec, batch, loop, context)
        if frames:
            pictures += _strip_files(frames, number, settings, folder)
        vectors = [key for key in spec.keys("vector") if key in loop.shown]
        if vectors:
            path = folder / f"curves_{number}.png"
            _curves(path, batch, loop, vectors, context)
            alt = f"Episode {number}: what its vectors were, and what the model predicted"
            pictures.append(Picture(path, alt, f"Episode {number}, from its beginning."))
    if not pictures:
        return None
    text = [
        f"The model sees the first {context} frames of an episode; from there on it imagines "
        f"{settings.horizon} more from the actions alone, while the real episode goes on above "
        "it. Orange marks what is imagined."
    ]
    if spec.keys("image"):
        text.append("Bottom row: the error, grey where the prediction is right.")
    return Section("Dreams beside what happened", text, pictures)


def _strip_files(
    frames: list[np.ndarray], number: int, settings: DreamConfig, folder: Path
) -> list[Picture]:
    """strip_N as PNG, GIF and MP4."""
    stem, context = folder / f"strip_{number}", settings.context
    write_picture(stem.with_suffix(".png"), films.strip(frames, context))
    moving = gif(films.coarse(films.titled(frames, context, SIDE)), settings.fps)
    stem.with_suffix(".gif").write_bytes(moving)
    write_video(stem.with_suffix(".mp4"), films.titled(frames, context, VIDEO_SIDE), settings.fps)
    what = f"truth, prediction and error of episode {number}, imagined from frame {context + 1} on"
    return [
        Picture(stem.with_suffix(".gif"), f"Film: {what}", f"Episode {number}", "film"),
        Picture(stem.with_suffix(".png"), f"Strip: {what}", f"Episode {number}", "wide"),
    ]


def _curves(path: Path, batch: Batch, loop: dream.OpenLoop, keys: list[str], context: int) -> None:
    """Truth and prediction of vector entries over time, as PNG and CSV."""
    entries = [(key, i) for key in keys for i in range(batch.obs[key].shape[-1])][:CURVES]
    time = np.arange(1, batch.shape[1] + 1)
    figure, axes = plots.figure(1, len(entries), height=1.8)
    panels = {}
    for row, (key, i) in enumerate(entries):
        curves = [
            plots.Curve("truth", time, batch.obs[key][0, :, i].float().cpu().numpy()),
            plots.Curve("model", time, loop.shown[key][0, :, i].float().cpu().numpy()),
        ]
        panels[f"{key}[{i}]"] = curves
        plots.draw(axes[row][0], curves, f"{key}[{i}]", "row", "")
        axes[row][0].axvline(context + 0.5, color=np.array(films.MARK) / 255, linewidth=2)
    plots.save(figure, path)
    plots.write_curves(path.with_suffix(".csv"), panels)


@dataclass
class Futures:
    """N futures of H steps: who acts in each, what every step looks like ([H][N] pictures; empty
    without images), and its numbers by name, [N, H] each. value is there if the agent has one."""

    kinds: list[str]
    pictures: list[list[np.ndarray]] = field(default_factory=list)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, kind: str) -> list[int]:
        """The futures of one kind."""
        return [i for i, found in enumerate(self.kinds) if found == kind]

    def returns(self, discount: float) -> dict[str, float]:
        """Mean imagined return of each kind, discounted, ends counted."""
        reward, cont = (torch.from_numpy(self.numbers[name]) for name in ("reward", "cont"))
        found = metrics.discounted(reward, discount * cont).numpy()
        return {kind: float(found[self.of(kind)].mean()) for kind in dict.fromkeys(self.kinds)}


@torch.no_grad()
def imagine(policy: Policy, start: Any, settings: DreamConfig) -> Futures:
    """Go on from one state [1, ...]: under the policy (sampled), where the agent can act in
    imagination, and under random actions."""
    model, each = policy.model, settings.futures
    judge = policy.agent.evaluate
    acts = judge(start).prior is not None
    out = Futures((["policy"] * each if acts else []) + ["random"] * each)
    state = tree.map(lambda x: x.expand(len(out.kinds), *x.shape[1:]).contiguous(), start)
    rng = np.random.default_rng(seeding.spawn(settings.seed, "random futures"))
    steps: dict[str, list[torch.Tensor]] = {}
    for _ in progress.each(range(settings.horizon), "imagining futures, step"):
        mask = model.action_mask(state) if isinstance(model, Masks) else None
        seen = {} if mask is None else {MASK_KEY: mask[-each:].cpu().numpy()}
        action = torch.from_numpy(random_actions(policy.spec, seen, each, rng))
        action = action.to(tree.device(state))
        if acts:
            chosen = judge(tree.index(state, slice(each))).prior.sample()
            action = torch.cat([policy.spec.action.clip(chosen), action])
        state, reward, cont = model.step(state, action)
        found = {"reward": reward, "cont": cont}
        value = judge(state).value
        if value is not None:
            found["value"] = value
        for name, number in found.items():
            steps.setdefault(name, []).append(number)
        out.pictures.append(films.pictures(policy.spec, dream.decoded(model, state)))
    out.numbers = {k: torch.stack(v, 1).double().cpu().numpy() for k, v in steps.items()}
    if not any(out.pictures):
        out.pictures = []
    return out


def draw_futures(policy: Policy, lived: Experience, settings: DreamConfig, folder: Path) -> Section:
    """The futures of the first shown episode's last context frame, with all files."""
    number, context = lived.shown(settings)[0], settings.context
    batch = lived.batch([number], 0, context).to(dream.device_of(policy.model))
    start = tree.index(dream.follow(policy.model, batch), (slice(None), -1))
    futures = imagine(policy, start, settings)
    pictures: list[Picture] = []
    what = f"{settings.futures} futures each under the policy and under random actions"
    if futures.pictures:
        real = films.pictures(policy.spec, {k: v[:, -1] for k, v in batch.obs.items()})[0]
        stem = folder / "branches"
        write_picture(stem.with_suffix(".png"), grid(real, futures))
        moving = films.coarse(film(real, futures, SIDE))
        stem.with_suffix(".gif").write_bytes(gif(moving, settings.fps))
        write_video(stem.with_suffix(".mp4"), film(real, futures, VIDEO_SIDE), settings.fps)
        pictures = [
            Picture(stem.with_suffix(".gif"), f"Film: {what}", "All steps.", "plot"),
            Picture(stem.with_suffix(".png"), f"Pictures: {what}", "Some steps.", "wide"),
        ]
    pictures.insert(1 if pictures else 0, _numbers(futures, folder))
    returns = futures.returns(policy.model.discount)
    words = {"policy": "the policy", "random": "random actions"}
    promised = ", ".join(f"{value:.1f} under {words[kind]}" for kind, value in returns.items())
    text = [
        f"From frame {context} of episode {number} the model imagines {settings.horizon} steps "
        f"several times over: {what}. Nothing here happened."
        + (" Below each frame: " if futures.pictures else " Drawn: ")
        + "the imagined reward, the probability that the episode goes on, and the agent's value.",
        f"Mean discounted return that is promised: {promised}.",
    ]
    if "value" not in futures.numbers:
        text.append("This agent has no value to show.")
    if not futures.of("policy"):
        text.append("This agent cannot act in imagination, so only random actions are shown.")
    return Section("Branching dreams", text, pictures)


def _numbers(futures: Futures, folder: Path) -> Picture:
    """The numbers of all futures as curves and as a table."""
    panels = {}
    figure, axes = plots.figure(1, len(futures.numbers), height=1.9)
    for row, (name, found) in enumerate(futures.numbers.items()):
        x = np.arange(1, found.shape[1] + 1)
        curves = []
        for kind in dict.fromkeys(futures.kinds):
            some = found[futures.of(kind)]
            curves.append(plots.Curve(kind, x, some.mean(0), some.min(0), some.max(0)))
        panels[name] = curves
        last = row == len(futures.numbers) - 1
        plots.draw(axes[row][0], curves, TITLES[name], "imagined steps" if last else "", "")
    path = plots.save(figure, folder / "branches_numbers.png")
    names = list(futures.numbers)
    rows = [
        (kind, i, h + 1, *(futures.numbers[name][i, h] for name in names))
        for i, kind in enumerate(futures.kinds)
        for h in range(futures.numbers["reward"].shape[1])
    ]
    plots.write_table(folder / "branches.csv", ("actions", "future", "step", *names), rows)
    return Picture(
        path,
        "Reward, continue and value of the imagined futures, policy against random",
        "Mean over the futures of each kind; the band spans all of them.",
    )


def grid(real: np.ndarray, futures: Futures) -> np.ndarray:
    """One row for each future: the real frame, then evenly spaced imagined ones with numbers."""
    horizon = len(futures.pictures)
    picks = sorted({int(i) for i in np.linspace(0, horizon - 1, COLUMNS).round()})
    rows = []
    for i, kind in enumerate(futures.kinds):
        cells = [_cell(real, f"{kind} {futures.of(kind).index(i) + 1}", [], SIDE, False)]
        cells += [
            _cell(futures.pictures[h][i], f"+{h + 1}", _words(futures, i, h), SIDE, True)
            for h in picks
        ]
        rows.append(films.tiled(cells, len(cells), GAP))
    return films.tiled(rows, 1, GAP)


def film(real: np.ndarray, futures: Futures, side: int) -> list[np.ndarray]:
    """Frames of all futures at once, a row for each kind; the first one shows what is real."""
    columns = max(len(futures.of(kind)) for kind in futures.kinds)
    frames = []
    for h in range(-1, len(futures.pictures)):
        cells = []
        for i, kind in enumerate(futures.kinds):
            image = real if h < 0 else futures.pictures[h][i]
            words = [] if h < 0 else _words(futures, i, h)
            cells.append(_cell(image, f"{kind} +{h + 1}" if h >= 0 else kind, words, side, h >= 0))
        frames.append(films.even(films.tiled(cells, columns, GAP)))
    return frames


def _words(futures: Futures, i: int, h: int) -> list[str]:
    return [f"{name} {found[i, h]:.3g}" for name, found in futures.numbers.items()]


def _cell(image: np.ndarray, title: str, words: list[str], side: int, imagined: bool) -> np.ndarray:
    """An image with a title above and lines below, always three of them."""
    body = enlarged(films.bordered(image) if imagined else image, side)
    width, ink = body.shape[1], films.MARK if imagined else films.INK
    below = films.lines((words or ["real frame"]) + [""] * (3 - max(len(words), 1)), width)
    return np.concatenate([films.lines([title], width, ink), body, below], 0)
