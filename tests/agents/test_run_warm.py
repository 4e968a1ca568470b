"""Runs that start with parts of another one: what is loaded, what is refused, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.dreamer import Dreamer, DreamerConfig
from agents.run.config import TrainConfig
from agents.run.trainer import Trainer
from tests.agents.counting_agent import ENV, CountingConfig
from tests.agents.test_run_train import SILENT
from tests.model_batches import scramble, tiny
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig
from worldmodel.models.ensemble import EnsembleConfig
from worldmodel.replay import ReplayConfig
from worldmodel.rssm import HeadConfig


def settings(folder: Path, **changes: Any) -> TrainConfig:
    size = changes.pop("size", 32)
    kwargs = changes.pop("kwargs", {})
    base = TrainConfig(
        run=str(folder),
        steps=60,
        device="cpu",
        env=EnvConfig(id=ENV, kwargs=kwargs, keys=["image"], image_size=[size, size]),
        replay=ReplayConfig(capacity=500),
        agent=DreamerConfig(batch_size=2, batch_length=4, horizon=2, model=tiny()),
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights, buffers included, are nobody else's."""
    folder = tmp_path_factory.mktemp("old")
    trainer = Trainer(settings(folder), SILENT)
    agent = trainer.state.agent
    assert isinstance(agent, Dreamer)
    scramble(agent.module, seed=9)
    agent.return_scale.high.fill_(7.0)  # type: ignore[operator]
    agent.model.encoder.centre.mean.fill_(0.25)
    trainer.save()
    trainer.close()
    return folder


def started(folder: Path, old: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights that a new run begins with, and what it says."""
    said: list[str] = []
    trainer = Trainer(settings(folder, **{"from_run": str(old), **changes}), said.append)
    trainer.close()
    module: dict[str, torch.Tensor] = trainer.state.agent.state_dict()["module"]
    return module, said


def same(folder: Path, old: Path, **changes: Any) -> tuple[set[str], str]:
    """Parts that are wholly the old run's, and the line that says so."""
    ours, said = started(folder, old, **changes)
    trainer = Trainer(settings(old), SILENT)
    trainer.close()
    theirs = trainer.state.agent.state_dict()["module"]
    equal: dict[str, bool] = {}
    for name, value in ours.items():
        words = name.split(".")
        part = (
            ".".join(words[1 : 3 if words[1] == "heads" else 2])
            if words[0] == "model"
            else words[0]
        )
        alike = name in theirs and theirs[name].shape == value.shape
        equal[part] = equal.get(part, True) and alike and torch.equal(theirs[name], value)
    line = next(text for text in said if text.startswith("from "))
    return {part for part, yes in equal.items() if yes}, line


WHOLE = {
    "encoder", "core", "decoder", "heads.reward", "heads.cont", "actor", "critic", "slow_critic",
    "return_scale",
}  # fmt: skip


def test_all_parts_load_by_default(tmp_path: Path, old: Path) -> None:
    parts, line = same(tmp_path, old)
    assert parts == WHOLE
    assert line.endswith("encoder, core, decoder, heads, actor, critic")


def test_chosen_parts_load_and_the_others_start_anew(tmp_path: Path, old: Path) -> None:
    parts, line = same(tmp_path, old, load_parts=["encoder", "core"])
    assert parts == {"encoder", "core"}
    assert "encoder, core; new: " in line


def test_what_the_old_run_never_had_starts_anew(tmp_path: Path, old: Path) -> None:
    heads = {**tiny().heads, "second": HeadConfig("reward", "mse")}
    model = tiny(heads=heads, ensemble=EnsembleConfig(3, units=8))
    agent = replace(settings(tmp_path).agent, model=model)
    parts, line = same(tmp_path, old, agent=agent)
    assert parts == WHOLE
    assert line.endswith("heads (reward, cont), actor, critic; new: heads (second), ensemble")


def test_other_actions_are_refused_with_what_to_leave_out(tmp_path: Path, old: Path) -> None:
    other = {"kwargs": {"actions": "box"}}
    with pytest.raises(ConfigError) as error:
        started(tmp_path / "a", old, **other)
    text = str(error.value)
    assert "actions: there discrete, 3, here continuous" in text
    assert "It concerns actor, core, ensemble." in text
    assert "load_parts=[encoder,decoder,heads,critic]" in text
    parts, _ = same(
        tmp_path / "b", old, load_parts=["encoder", "decoder", "heads", "critic"], **other
    )
    assert parts == WHOLE - {"core", "actor"}


def test_other_pictures_are_refused(tmp_path: Path, old: Path) -> None:
    with pytest.raises(ConfigError) as error:
        started(tmp_path, old, size=64)
    assert "observation 'image': there ObsSpec(kind='image', shape=(32, 32, 3)" in str(error.value)
    assert "It concerns core, decoder, encoder." in str(error.value)


def test_another_size_lists_what_does_not_fit(tmp_path: Path, old: Path) -> None:
    agent = replace(settings(tmp_path).agent, model=tiny(units=24))
    with pytest.raises(ConfigError, match=r"needed \[24, .*checkpoint has \[16"):
        started(tmp_path, old, agent=agent)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load_parts": ["encoders"]}, "Did you mean 'encoder'"),
        ({"from_run": "nowhere"}, "The folder 'nowhere' does not exist"),
        ({"agent": CountingConfig()}, "has no parts"),
    ],
)
def test_what_cannot_be_loaded_says_so(
    tmp_path: Path, old: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        started(tmp_path, old, **changes)


def test_a_frozen_model_must_come_from_somewhere(tmp_path: Path, old: Path) -> None:
    frozen = replace(settings(tmp_path).agent, freeze_model=True)
    with pytest.raises(ConfigError, match="from_run=RUN"):
        started(tmp_path / "a", old, agent=frozen, from_run="")
    with pytest.raises(ConfigError, match="settings core learn nothing"):
        started(tmp_path / "b", old, agent=frozen, load_parts=["encoder", "decoder", "heads"])
    with pytest.raises(ConfigError, match=r"agent\.store_latents=true"):
        replace(frozen, store_latents=False)
    parts, _ = same(tmp_path / "d", old, agent=frozen,
                    load_parts=["encoder", "core", "decoder", "heads"])  # fmt: skip
    assert parts == {"encoder", "core", "decoder", "heads.reward", "heads.cont"}


def test_a_continued_run_keeps_its_own_weights(tmp_path: Path, old: Path) -> None:
    ours, _ = started(tmp_path, old)
    trainer = Trainer(settings(tmp_path, from_run=str(old)), SILENT)
    with torch.no_grad():
        trainer.state.agent.actor.out.bias.fill_(3.0)  # type: ignore[attr-defined]
    trainer.save()
    trainer.close()
    again, said = started(tmp_path, old)
    assert again["actor.out.bias"].eq(3.0).all()
    assert torch.equal(again["model.core.mix.weight"], ours["model.core.mix.weight"])
    assert not any(text.startswith("from ") for text in said)
