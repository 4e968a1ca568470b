"""The command behind scripts/fit_reward.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import agents
from agents.apps.episodes import Episodes
from agents.apps.rewards.comparisons import too_few
from agents.apps.rewards.pipeline import FitConfig, fit_head
from agents.apps.rewards.report import grade, write_episode
from agents.apps.rewards.store import remove_head
from worldmodel import config
from worldmodel.config import ConfigError, RunError
from worldmodel.rssm.fitted import FOLDER, checkpoint_name, head_names, read_head


def fit_reward_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Fit, list or remove reward heads of a run; the exit code."""
    return config.guarded(lambda: _command(arguments, say), say)


def _command(words: Sequence[str], say: Callable[[str], None]) -> int:
    settings = config.from_cli(FitConfig, words)
    config.read(Path(settings.run) / "config.yaml")  # ConfigError where it is no run
    asked = {
        "list=true": settings.list,
        "remove=...": bool(settings.remove),
        "show=...": settings.show >= 0,
        "reward=...": bool(settings.reward),
    }
    chosen = [name for name, wanted in asked.items() if wanted]
    if len(chosen) != 1:
        raise ConfigError(
            f"Ask for one thing: {', '.join(asked)}. Given: {', '.join(chosen) or 'none of them'}."
        )
    if settings.list:
        say(listing(settings.run))
    elif settings.remove:
        say(f"removed {remove_head(settings.run, settings.remove)}")
    elif settings.show >= 0:
        episodes = Episodes(agents.load_replay(settings.run))
        path = Path(settings.run) / FOLDER / f"episode-{settings.show:04d}.png"
        say(f"episode {settings.show}: {write_episode(path, episodes, settings.show)}")
    else:
        if not settings.name:
            raise ConfigError("The new head needs a name: name=hang, for example.")
        fit_head(settings, say)
    return 0


def listing(run: str | Path) -> str:
    """The heads of a run, a line each: name, source, how well it did on held-out episodes."""
    names = head_names(run)
    if not names:
        return f"'{run}' has no fitted heads."
    width = max(len(name) for name in names)
    return "\n".join(f"{name:<{width}}  {_line(run, name)}" for name in names)


def _line(run: str | Path, name: str) -> str:
    try:
        stored = read_head(run, name)
    except RunError as error:
        return str(error)
    found = stored.fitted.get("held_out")
    if found is None:
        quality = "not judged"
    elif "pairs" in found:
        quality = f"{found['right']:.0%} of held-out pairs" + ", too few" * too_few(found)
    else:
        quality = ", ".join(filter(None, (f"held-out R2 {found['r2']:.3f}", grade(found))))
    stale = "" if stored.checkpoint == checkpoint_name(run) else ", of an older checkpoint"
    return f"{stored.source['reward']}  ({quality}{stale})"
