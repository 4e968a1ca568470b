"""From a source of rewards to a stored head: label, filter, fit, measure, report, keep."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import agents
from agents.apps.rewards import compose, finetune, fit, preferences, report, store
from agents.apps.rewards.config import FitConfig
from agents.apps.rewards.experience import Experience
from agents.apps.rewards.goals import Goals
from agents.apps.rewards.latents import Latents, filtered
from agents.apps.rewards.sources import Labels, Source, labels_of, parse
from agents.apps.rewards.split import Examples, check_shown, chosen, split
from agents.base import Policy
from worldmodel.accel.devices import set_threads
from worldmodel.config import ConfigError
from worldmodel.rssm import Head
from worldmodel.seeding import rng_state, set_rng_state, spawn

Said = Callable[[str], None]
UPDATES, UPDATES_OF_PAIRS = 2000, 400
ROWS, PAIRS = 256, 32  # of one update
# Fewer labelled rows than this are learned with half of the latents hidden at random, and by a
# plain squared error; both generalise better then, and neither with more (docs/REWARDS.md).
FEW, DROPOUT = 1000, 0.5


def fit_head(settings: FitConfig, say: Said) -> store.Stored:
    """Fit a head as the settings say, and store it beside its run, or, fine-tuned, with its model
    as a new run.

    Raises ConfigError, before anything is fitted, for whatever is wrong with the request, and
    RunError where a run or a head is damaged. The global random generators are left as they were.
    """
    began, before = time.monotonic(), rng_state()
    set_threads(settings.threads)
    try:
        job = _Job(settings, say)
        return job.run(began)
    finally:
        set_rng_state(before)


class _Job:
    """One head on its way: what was asked, the run, and what is known by now."""

    def __init__(self, settings: FitConfig, say: Said) -> None:
        self.settings, self.say = settings, say
        self.source: Source = parse(settings.reward)
        self.policy: Policy = compose.load_policy(settings.run, settings.device)
        self.model = compose.world_model(self.policy, settings.run)
        taken = compose.taken_names(self.policy, settings.run)
        store.check_name(settings.run, settings.name, taken, settings.replace)
        compose.check_bearable(self.policy, settings.run, settings.name)
        if settings.finetune:
            if self.source.kind == "preferences":
                raise ConfigError(
                    "finetune=true needs labels; preferences teach a head alone. Leave it out."
                )
            finetune.new_run(settings)  # ConfigError where it cannot be written
        self.few = self.source.kind == "preferences"
        self.kind = _kind(settings, self.source)
        self.model.requires_grad_(False)
        self.experience = Experience(agents.load_replay(settings.run), self.policy.spec)
        if not len(self.experience):
            raise ConfigError(f"The replay of '{settings.run}' holds no rows yet. Train the run.")
        self.labels: Labels | None = None
        self.examples: Examples | None = None
        self.pairs: preferences.Pairs | None = None
        self._prepare()

    def _prepare(self) -> None:
        """Labels or pairs, split; everything that may be wrong with them is found here."""
        settings = self.settings
        seed = spawn(settings.seed, "held-out episodes")
        began = time.monotonic()
        if self.source.kind == "preferences":
            pairs = preferences.read_pairs(self.source.what, self.experience)
            self.pairs = preferences.split_pairs(pairs, settings.holdout, seed)
            self.say(f"{len(pairs):,} pairs of segments in {len(pairs.episodes)} episodes")
            return
        goals = Goals(settings.goal_scale)
        found = labels_of(self.source, self.experience, self.model, goals)
        check_shown(found)
        if self.kind == "bernoulli" and not ((found.all >= 0) & (found.all <= 1)).all():
            raise ConfigError(
                f"kind=bernoulli predicts probabilities, but labels go from {found.all.min():g} to "
                f"{found.all.max():g}. Use kind=twohot."
            )
        self.labels = chosen(self.experience, found, settings.rows)
        self.examples = split(self.labels, settings.holdout, seed)
        self.few = int((~self.examples.held_out).sum()) < FEW
        if self.few and not settings.kind:
            self.kind = "mse"
        self.say(
            f"{len(found.all):,} of {self.experience.rows:,} rows have a label, in "
            f"{len(found.episodes)} of {len(self.experience)} episodes; "
            f"{len(self.examples.value):,} are used, {int(self.examples.held_out.sum()):,} of them "
            f"held out ({time.monotonic() - began:.1f} s)"
        )

    def run(self, began: float) -> store.Stored:
        """Fit, measure and store."""
        settings, run = self.settings, Path(self.settings.run)
        latents = self._filter()
        head, found = self._fit(latents)
        if settings.finetune:
            assert self.examples is not None
            run = finetune.new_run(settings)
            tuned = finetune.tune(
                self.policy, self.experience, head, latents, self.examples, settings, self.say
            )
            latents = self._filter()
            head, after = self._fit(latents)
            found = after | {"finetuned": {**tuned, "from": settings.run, "before": found}}
            finetune.write_run(settings, run, self.policy, self.say)
        found["seconds"] = round(time.monotonic() - began, 2)
        stored = self._store(run, head, found, latents)
        self.say(report.text(found))
        self.say(f"head '{stored.name}' of {run}: {stored.folder} ({found['seconds']:.1f} s)")
        return stored

    def _filter(self) -> Latents:
        """The model's states of every episode that is used."""
        began = time.monotonic()
        used = self.examples if self.examples is not None else self.pairs
        assert used is not None
        latents = filtered(
            self.model, self.experience, used.episodes, spawn(self.settings.seed, "filter")
        )
        self.say(
            f"the model saw {len(latents):,} rows of {len(latents.episodes)} episodes "
            f"({time.monotonic() - began:.1f} s)"
        )
        return latents

    def _fit(self, latents: Latents) -> tuple[Head, dict[str, Any]]:
        """A head for these latents, and what was measured of it."""
        settings = self.settings
        seed = spawn(settings.seed, "head")
        head = fit.new_head(self.model, self.kind, settings.layers, seed)
        if self.pairs is not None:
            return head, self._fit_pairs(head, latents, seed)
        assert self.examples is not None
        updates = settings.updates or UPDATES
        batch, dropout = settings.batch or ROWS, self._dropout
        loss = fit.regression(head, latents, self.examples, batch, dropout)
        self.say(f"fitting a {self.kind} head")
        last = fit.train(head, updates, settings.lr, loss, seed, self.say)
        fit.rescale(head, *fit.unit_of(head, self.examples))
        done = {"updates": updates, "batch": batch, "dropout": dropout, "loss": last}
        return head, done | self._measure(head, latents)

    @property
    def _dropout(self) -> float:
        """The share of the latents that is hidden while the head learns."""
        given = self.settings.dropout
        return given if given >= 0 else DROPOUT if self.few else 0.0

    def _measure(self, head: Head, latents: Latents) -> dict[str, Any]:
        examples = self.examples
        assert examples is not None
        guess = fit.predicted(head, latents, fit.rows_of(latents, examples))
        constant = float(examples.value[~examples.held_out].mean())
        found: dict[str, Any] = {}
        for name, which in (("held_out", examples.held_out), ("taught", ~examples.held_out)):
            if which.any():
                found[name] = fit.errors(guess[which], examples.value[which], constant)
        found["ahead"] = fit.errors_ahead(
            head, self.model, self.experience, latents, examples, spawn(self.settings.seed, "ahead")
        )
        return found

    def _fit_pairs(self, head: Head, latents: Latents, seed: int) -> dict[str, Any]:
        """Bradley-Terry; the labels become what the head says of every row of these episodes."""
        settings, pairs = self.settings, self.pairs
        assert pairs is not None
        updates = settings.updates or UPDATES_OF_PAIRS
        loss = preferences.comparison(head, latents, pairs, settings.batch or PAIRS, self._dropout)
        self.say(f"fitting a {self.kind} head to pairs")
        last = fit.train(head, updates, settings.lr, loss, seed, self.say)
        found: dict[str, Any] = {"updates": updates, "loss": last}
        for name, which in (("held_out", pairs.held_out), ("taught", ~pairs.held_out)):
            if which.any():
                found[name] = preferences.judged(head, latents, pairs, np.flatnonzero(which))
        rows = np.arange(len(latents))
        guess = fit.predicted(head, latents, rows)
        if guess.std() < 1e-6:
            raise ConfigError(
                "The pairs teach no reward: every state came out alike. Compare segments that "
                "differ, or give more pairs."
            )
        found["unit"] = float(guess.std())  # in log odds, before the scale below
        fit.rescale(head, -float(guess.mean() / guess.std()), 1.0 / float(guess.std()))
        guess = (guess - guess.mean()) / guess.std()
        values = [np.full(n, np.nan) for n in self.experience.lengths]
        for number in latents.episodes:
            part = latents.rows(number, np.arange(self.experience.lengths[number]))
            values[number] = guess[part]
        self.labels = Labels(values)
        return found

    def _store(
        self, run: str | Path, head: Head, found: dict[str, Any], latents: Latents
    ) -> store.Stored:
        assert self.labels is not None
        found["seen"] = report.seen(self.labels)
        source: dict[str, Any] = {"reward": self.source.words, "kind": self.source.kind}
        if self.source.kind == "goal":
            source["goal_scale"] = self.settings.goal_scale
        stored = store.Stored(
            name=self.settings.name,
            source=source,
            head=asdict(replace(head.config, scale=0.0)),
            fitted={**found, "holdout": self.settings.holdout, "seed": self.settings.seed},
            checkpoint=store.checkpoint_name(run),
            model=store.fingerprint(self.model),
        )
        with tempfile.TemporaryDirectory() as place:
            files = Path(place)
            guess = np.zeros(0)
            if self.examples is not None:
                which = report.judged(self.examples)
                guess = fit.predicted(head, latents, fit.rows_of(latents, self.examples)[which])
            report.write_files(files, self.labels, found["seen"], self.examples, guess)
            return store.write(run, stored, head, files)


def _kind(settings: FitConfig, source: Source) -> str:
    """The kind of the head; ConfigError where it cannot learn from the source."""
    if source.kind != "preferences":
        return settings.kind or "twohot"
    if settings.kind not in ("", "mse"):
        raise ConfigError(
            f"kind={settings.kind} cannot learn from preferences, which tell sums of rewards apart "
            "and nothing of their size. Leave kind out: it is mse."
        )
    return "mse"
