"""From a source of rewards to a stored head: label, filter, fit, measure, report, keep."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

import agents
from agents.apps.episodes import Episodes
from agents.apps.rewards import comparisons, finetune, fit, labels, report, store
from agents.apps.rewards.labels import Examples, Labels, Source
from agents.apps.rewards.latents import Latents, filtered, goal_labels
from agents.apps.rewards.tables import Pairs, read_pairs, split_pairs
from agents.base import Policy
from worldmodel import config
from worldmodel.accel.devices import set_threads
from worldmodel.config import ConfigError
from worldmodel.folders import make_folder
from worldmodel.rssm import Head
from worldmodel.rssm.fitted import FittedHead, TakesHeads, checkpoint_name, fingerprint
from worldmodel.rssm.heads import KINDS
from worldmodel.seeding import rng_state, set_rng_state, spawn

UPDATES, UPDATES_OF_PAIRS = 2000, 400
ROWS, PAIRS = 256, 32  # of one update
# Fewer labelled rows than this are learned with half of the latents hidden at random, and by a
# plain squared error; both generalise better then, and neither with more (docs/REWARDS.md).
FEW, DROPOUT = 1000, 0.5


@dataclass
class FitConfig:
    """A reward head on the latents of a trained run; or, without `reward`, a word on its heads."""

    run: str = MISSING  # run folder
    name: str = ""  # of the new head: letters, digits and underscores
    reward: str = ""  # where it comes from (docs/REWARDS.md), for example my_module:hang
    replace: bool = False  # a head of that name may be there already
    list: bool = False  # say which heads there are
    remove: str = ""  # the name of a head to delete
    show: int = -1  # number of an episode to draw with its steps, so that it can be labelled
    kind: str = ""  # twohot, mse, symlog_mse, bernoulli; empty: twohot, or mse for few labels
    layers: int = 1  # hidden layers
    updates: int = 0  # gradient steps; 0: 2000, or 400 for preferences
    batch: int = 0  # rows, or pairs of segments, of one update; 0: 256 rows or 32 pairs
    dropout: float = -1.0  # share of the latents hidden while fitting; -1: none, or 0.5 for few
    lr: float = 1e-3  # step size, which falls to a tenth
    holdout: float = 0.2  # share of the episodes that only judge the head; 0 leaves it unjudged
    rows: int = 200_000  # the most rows to look at; whole episodes, spread over the replay
    goal_scale: float = 0.0  # 0: minus the distance to the goal; above: exp(-distance / goal_scale)
    finetune: bool = False  # let the reward change the world model, too, as a new run
    into: str = ""  # folder of that run; empty: <run>-<name>
    finetune_updates: int = 200  # gradient steps of the world model
    finetune_lr: float = 1e-4
    seed: int = 0
    device: str = "auto"
    threads: int = 1  # CPU threads inside operations; 0 leaves torch's choice

    def __post_init__(self) -> None:
        most = 1 << 30
        ranges = {
            **dict.fromkeys(("updates", "batch", "threads"), (0, most)),
            **dict.fromkeys(("rows", "finetune_updates"), (1, most)),
            **dict.fromkeys(("lr", "finetune_lr"), (1e-12, 1e3)),
            "layers": (0, 64), "show": (-1, most), "seed": (0, 2**32 - 1),
            "goal_scale": (0, 1e9), "holdout": (0, 0.99), "dropout": (-1, 0.99),
        }  # fmt: skip
        config.check_ranges(self, ranges)
        if self.kind and self.kind not in KINDS:
            raise ConfigError(config.unknown("head kind", self.kind, KINDS))

    @property
    def new_run(self) -> Path:
        """The folder of a fine-tuned run."""
        return Path(self.into or f"{Path(self.run)}-{self.name}")


def fit_head(settings: FitConfig, say: Callable[[str], None]) -> FittedHead:
    """Fit a head as the settings say, and store it beside its run, or, fine-tuned, with its model
    as a new run.

    Raises ConfigError, before anything is fitted, for whatever is wrong with the request, and
    RunError where a run or a head is damaged. The global random generators are left as they were.
    """
    before = rng_state()
    set_threads(settings.threads)
    try:
        return _Job(settings, say).run()
    finally:
        set_rng_state(before)


def labels_of(source: Source, episodes: Episodes, model: Any = None, scale: float = 0.0) -> Labels:
    """The labels of every row, from any source but preferences. model, scale: for goals alone.

    Raises ConfigError where the source does not fit the replay.
    """
    if source.kind == "function":
        return labels.function_labels(labels.load_function(source.what), episodes)
    if source.kind == "key":
        return labels.key_labels(source.what, episodes)
    if source.kind == "labels":
        return labels.file_labels(source.what, episodes)
    assert source.kind == "goal"
    return goal_labels(source.what, episodes, model, scale)


class _Job:
    """One head on its way: what was asked, the run, and what teaches: labelled rows or pairs."""

    def __init__(self, settings: FitConfig, say: Callable[[str], None]) -> None:
        self.settings, self.say, self.began = settings, say, time.monotonic()
        self.source = labels.parse(settings.reward)
        self.policy: Policy = agents.load(settings.run, settings.device)
        self.model = store.world_of(self.policy, settings.run)
        store.check_name(self.policy, settings.run, settings.name, settings.replace)
        self._check()
        self.episodes = Episodes(agents.load_replay(settings.run))
        if not len(self.episodes):
            raise ConfigError(f"The replay of '{settings.run}' holds no rows yet. Train the run.")
        seed = spawn(settings.seed, "held-out episodes")
        self.labels = Labels([])
        self.examples: Examples | None = None
        self.pairs: Pairs | None = None
        self.kind, self.few = "mse", True  # of the head, and whether little teaches it
        if self.source.kind == "preferences":
            self.pairs = split_pairs(
                read_pairs(self.source.what, self.episodes), settings.holdout, seed
            )
            say(f"{len(self.pairs):,} pairs of segments in {len(self.pairs.episodes)} episodes")
        else:
            self.examples = self._labelled(seed)

    def _check(self) -> None:
        """ConfigError for settings that do not go together."""
        settings = self.settings
        if settings.finetune and not isinstance(self.model, TakesHeads):
            raise ConfigError(
                f"finetune=true lets a reward change the world, but a {type(self.model).__name__} "
                "has no features that could change. Leave it out."
            )
        if settings.finetune and settings.new_run.exists() and any(settings.new_run.iterdir()):
            raise ConfigError(
                f"finetune=true writes a new run to '{settings.new_run}', but there is something "
                "in it. Name another folder with into=..."
            )
        if self.source.kind != "preferences":
            return
        if settings.finetune:
            raise ConfigError(
                "finetune=true needs labels; preferences teach a head alone. Leave it out."
            )
        if settings.kind not in ("", "mse"):
            raise ConfigError(
                f"kind={settings.kind} cannot learn from preferences, which tell sums of rewards "
                "apart and nothing of their size. Leave kind out: it is mse."
            )

    def _labelled(self, seed: int) -> Examples:
        """The labels, split; everything that may be wrong with them is found here."""
        settings, began = self.settings, time.monotonic()
        found = labels_of(self.source, self.episodes, self.model, settings.goal_scale)
        labels.check_varied(found)
        if settings.kind == "bernoulli" and not ((found.all >= 0) & (found.all <= 1)).all():
            raise ConfigError(
                f"kind=bernoulli predicts probabilities, but labels go from {found.all.min():g} to "
                f"{found.all.max():g}. Use kind=twohot."
            )
        self.labels = labels.thinned(self.episodes, found, settings.rows)
        examples = labels.split(self.labels, settings.holdout, seed)
        self.few = len(examples.taught) < FEW
        self.kind = settings.kind or ("mse" if self.few else "twohot")
        self.say(
            f"{len(found.all):,} of {self.episodes.lengths.sum():,} rows have a label, in "
            f"{len(found.episodes)} of {len(self.episodes)} episodes; {len(examples.value):,} are "
            f"used, {int(examples.held_out.sum()):,} of them held out "
            f"({time.monotonic() - began:.1f} s)"
        )
        return examples

    def run(self) -> FittedHead:
        """Fit, measure and store."""
        settings, run = self.settings, Path(self.settings.run)
        place, word = (settings.new_run, "into") if settings.finetune else (run, "run")
        make_folder(place, word)
        latents = self._filter()
        head, found = self._fit(latents)
        if settings.finetune:
            assert self.examples is not None
            run = settings.new_run
            updates, lr = settings.finetune_updates, settings.finetune_lr
            finetune.tune(
                self.policy, self.episodes, head, latents, self.examples, updates, lr,
                spawn(settings.seed, "finetune"), self.say,
            )  # fmt: skip
            done = {"updates": updates, "lr": lr, "from": settings.run, "before": found}
            latents = self._filter()
            head, found = self._fit(latents)
            found["finetuned"] = done
            finetune.write_run(Path(settings.run), run, self.policy, self.say)
        found["seconds"] = round(time.monotonic() - self.began, 2)
        fitted = self._store(run, head, found, latents)
        self.say(report.text(found))
        self.say(f"head '{fitted.name}' of {run}: {fitted.folder} ({found['seconds']:.1f} s)")
        return fitted

    def _filter(self) -> Latents:
        """The model's states of every episode that is used."""
        began = time.monotonic()
        used = self.examples or self.pairs
        assert used is not None
        seed = spawn(self.settings.seed, "filter")
        latents = filtered(self.model, self.episodes, used.episodes, seed)
        self.say(
            f"the model saw {latents.count:,} rows of {len(latents.episodes)} episodes "
            f"({time.monotonic() - began:.1f} s)"
        )
        return latents

    def _fit(self, latents: Latents) -> tuple[Head, dict[str, Any]]:
        """A head for these latents, and what was measured of it."""
        settings = self.settings
        seed = spawn(settings.seed, "head")
        dropout = settings.dropout if settings.dropout >= 0 else DROPOUT if self.few else 0.0
        self.say(f"fitting a {self.kind} head" + (" to pairs" if self.pairs is not None else ""))
        if self.pairs is not None:
            updates, batch = settings.updates or UPDATES_OF_PAIRS, settings.batch or PAIRS
            done = {"updates": updates, "batch": batch, "dropout": dropout}
            recipe = comparisons.Recipe(settings.layers, updates, batch, dropout, settings.lr)
            head, found = comparisons.fit_pairs(
                self.model, latents, self.pairs, recipe, seed, self.say
            )
            return head, done | found | self._standardise(head, latents)
        assert self.examples is not None
        head = fit.blank_head(self.model, self.kind, settings.layers, seed)
        updates, batch = settings.updates or UPDATES, settings.batch or ROWS
        loss = fit.regression(head, latents, self.examples, batch, dropout)
        last = fit.train(head, updates, settings.lr, loss, seed, self.say)
        done = {"updates": updates, "batch": batch, "dropout": dropout, "loss": last}
        return head, done | self._measure(head, latents)

    def _measure(self, head: Head, latents: Latents) -> dict[str, Any]:
        """The errors of a head on held-out rows, on those that taught it, and in dreams."""
        examples = self.examples
        assert examples is not None
        fit.rescale(head, *fit.unit_of(head, examples))
        guess = fit.predicted(head, latents, latents.rows(examples.episode, examples.step))
        constant = float(examples.taught.mean())
        found: dict[str, Any] = {}
        for name, which in (("held_out", examples.held_out), ("taught", ~examples.held_out)):
            if which.any():
                found[name] = fit.errors(guess[which], examples.value[which], constant)
        seed = spawn(self.settings.seed, "ahead")
        found["ahead"] = fit.errors_ahead(head, self.model, self.episodes, latents, examples, seed)
        return found

    def _standardise(self, head: Head, latents: Latents) -> dict[str, Any]:
        """Centre and scale a head that pairs taught; what it says of every row of these episodes
        becomes the labels."""
        guess = fit.predicted(head, latents, np.arange(latents.count))
        mean, deviation = float(guess.mean()), float(guess.std())
        if deviation < 1e-6:
            raise ConfigError(
                "The pairs teach no reward: every state came out alike. Compare segments that "
                "differ, or give more pairs."
            )
        fit.rescale(head, -mean / deviation, 1.0 / deviation)
        values = [np.full(n, np.nan) for n in self.episodes.lengths]
        for number in latents.episodes:
            part = guess[latents.rows(number, np.arange(self.episodes.lengths[number]))]
            values[number] = (part - mean) / deviation
        self.labels = Labels(values)
        return {"unit": deviation}  # in log odds

    def _store(self, run: Path, head: Head, found: dict[str, Any], latents: Latents) -> FittedHead:
        found["seen"] = report.occurrence(self.labels)
        source: dict[str, Any] = {"reward": self.source.words, "kind": self.source.kind}
        if self.source.kind == "goal":
            source["goal_scale"] = self.settings.goal_scale
        fitted = FittedHead(
            name=self.settings.name,
            source=source,
            head=asdict(replace(head.config, scale=0.0)),
            fitted={**found, "holdout": self.settings.holdout, "seed": self.settings.seed},
            checkpoint=checkpoint_name(run),
            model=fingerprint(self.model),
        )
        guess, examples = np.zeros(0), self.examples
        if examples is not None:
            rows = latents.rows(examples.episode, examples.step)
            guess = fit.predicted(head, latents, rows[examples.judging])
        with tempfile.TemporaryDirectory() as place:
            report.write_files(Path(place), self.labels, found["seen"], examples, guess)
            return store.write_head(run, fitted, head, Path(place))
