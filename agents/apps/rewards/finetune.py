"""Let a reward change the world model itself; the result is a new run, the old one stays.

<run>                 untouched
<into>/config.yaml    the old settings
<into>/checkpoints/   the old checkpoint with the new weights of the world model; actor, critic
                      and optimizer are the old ones, so the policy meets states that have moved
<into>/replay/        a copy
<into>/heads/<name>/  the head, fitted anew on the new states
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from agents.apps.episodes import Episodes
from agents.apps.rewards.fit import rescale, unit_of
from agents.apps.rewards.labels import Examples
from agents.apps.rewards.latents import Latents
from agents.base import Policy
from worldmodel import checkpoint, config, progress
from worldmodel.config import RunError
from worldmodel.optim import LaProp, OptimConfig
from worldmodel.rssm import Head
from worldmodel.types import Batch


def tune(
    policy: Policy,
    episodes: Episodes,
    head: Head,
    latents: Latents,
    examples: Examples,
    updates: int,
    lr: float,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Teach the policy's world model its own losses and the head's together, in place, on episodes
    that are not held out. Raises RunError where a loss is not finite."""
    model = policy.model
    draw = _drawing(policy, episodes, head, latents, examples)
    mean, deviation = unit_of(head, examples)
    rescale(head, -mean / deviation, 1.0 / deviation)  # back to the unit in which it learns
    model.requires_grad_(True)
    head.requires_grad_(True)
    head.config.trains_latent = True
    warmup = max(1, updates // 10)
    optim = LaProp([("model", model), ("head", head)], OptimConfig(lr=lr, warmup=warmup))
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    began = time.monotonic()
    for done in progress.each(range(1, updates + 1), "fine-tuning, update"):
        batch, wanted = draw(rng)
        total, feat = model.loss_and_feat(batch)
        known = ~wanted.isnan()
        if known.any():
            total = total + head.loss(feat[known], wanted[known]).mean()
        try:
            optim.step(total)
        except FloatingPointError as error:
            raise RunError(f"Fine-tuning diverged: {error} Lower finetune_lr.") from error
        if done % max(1, updates // 4) == 0:
            say(f"  fine-tuning {done:,} of {updates:,}: {time.monotonic() - began:.1f} s")
    model.requires_grad_(False)


def _drawing(
    policy: Policy, episodes: Episodes, head: Head, latents: Latents, examples: Examples
) -> Callable[[np.random.Generator], tuple[Batch, Tensor]]:
    """What draws sequences [B, T] of episodes that are not held out, and their labels in the
    head's unit [B, T], NaN where there are none."""
    taught = [n for n in latents.episodes if (~examples.held_out[examples.episode == n]).any()]
    size = policy.agent.batch_size
    length = min(policy.agent.batch_length, int(episodes.lengths[taught].min()))
    target = np.full(latents.count, np.nan, np.float32)
    mean, deviation = unit_of(head, examples)
    target[latents.rows(examples.episode, examples.step)] = (examples.value - mean) / deviation

    def draw(rng: np.random.Generator) -> tuple[Batch, Tensor]:
        number = rng.choice(taught, size)
        step = rng.integers(episodes.lengths[number] - length + 1)
        batch = episodes.batch(number, step, length).to(policy.device)
        rows = latents.rows(number, step)
        wanted = torch.from_numpy(target[rows[:, None] + np.arange(length)])
        return batch, wanted.to(policy.device)

    return draw


def write_run(old: Path, folder: Path, policy: Policy, say: Callable[[str], None]) -> None:
    """Write the new run: settings, checkpoint, replay."""
    state = checkpoint.load(old)
    saved = config.read(old / "config.yaml")
    source = Path(saved.replay.directory or old / "replay")
    saved.run, saved.replay.directory = str(folder), None
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, folder / "replay", dirs_exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(saved))
    checkpoint.save(folder, {**state, "agent": policy.agent.state_dict()})
    say(
        f"new run {folder}: the fine-tuned world model and a copy of the replay; actor and critic "
        f"are those of {old} and have not met the new states. {old} is as it was."
    )
