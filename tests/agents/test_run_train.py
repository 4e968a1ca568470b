"""The training loop: what it owes, what it writes, and that nothing is lost on the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.run import folder as run_folder
from agents.run.config import TrainConfig, crossed
from agents.run.train import train
from agents.run.trainer import Trainer
from tests.agents.counting_agent import ENV, CountingAgent, CountingConfig
from worldmodel import checkpoint
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import EnvConfig
from worldmodel.replay import ReplayConfig

SILENT = lambda text: None  # noqa: E731


def settings(folder: Path, **changes: Any) -> TrainConfig:
    """60 steps of a counting environment, one update each 4 of them."""
    base = TrainConfig(
        run=str(folder),
        steps=60,
        train_ratio=2.0,  # of 2 x 4 rows
        log_every=10,
        eval_every=0,
        video_every=0,
        final_episodes=2,
        device="cpu",
        env=EnvConfig(id=ENV, kwargs={"length": 5}, state=True),
        replay=ReplayConfig(capacity=500),
        agent=CountingConfig(),
    )
    return replace(base, **changes)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.found(folder)}


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_crossed_notices_each_multiple_once() -> None:
    assert [crossed(n - 3, n, 10) for n in (3, 6, 9, 12, 15, 18, 21)] == [
        False, False, False, True, False, False, True,
    ]  # fmt: skip
    assert crossed(9, 10, 10)
    assert not crossed(10, 11, 10)
    assert not crossed(0, 100, 0)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_does_the_updates_that_steps_earn(tmp_path: Path, num_envs: int) -> None:
    config = settings(tmp_path)
    config = replace(config, env=replace(config.env, num_envs=num_envs, action_repeat=1))
    assert train(config, SILENT) == 0
    summary = summary_of(tmp_path)
    # Steps count from the moment when replay holds one batch, 8 rows; then one in four.
    learning = 60 - 7 if num_envs == 1 else 60 - 9
    assert abs(summary["updates"] - learning // 4) <= 1
    assert 60 <= summary["agent_steps"] < 60 + num_envs
    assert summary["env_frames"] == summary["agent_steps"]


def test_summary_says_what_was_asked_and_done(tmp_path: Path) -> None:
    config = settings(tmp_path, seed=3)
    config = replace(config, env=replace(config.env, action_repeat=2))
    train(config, SILENT)
    summary = summary_of(tmp_path)
    # Repeat 2: episodes of 2 + 2 + 1 frames, worth 1 + 2, 3 + 4 and 5.
    assert summary["eval_returns"] == [15.0, 15.0]
    assert summary["eval_return_mean"] == 15.0
    assert summary["eval_return_std"] == 0.0
    assert summary["eval_episodes"] == 2
    assert summary["task"] == ENV
    assert summary["seed"] == 3
    assert summary["env_frames"] == 2 * summary["agent_steps"]
    assert summary["wall_clock_s"] > 0
    assert {"device", "parameters", "code", "config"} < set(summary)
    assert {"worldmodel", "torch", "python", "gymnasium", "numpy"} < set(summary["versions"])
    assert (tmp_path / "eval.mp4").stat().st_size > 0


@pytest.mark.parametrize("mode", ["mode", "sample"])
def test_evaluations_sample_on_request(tmp_path: Path, mode: str) -> None:
    trainer = Trainer(settings(tmp_path, eval_mode=mode, eval_every=20), SILENT)
    trainer.run()
    assert trainer.finish() is not None
    agent = trainer.state.agent
    assert isinstance(agent, CountingAgent)
    assert set(agent.modes) == {mode, "sample"}
    assert summary_of(tmp_path)["eval_mode"] == mode
    with pytest.raises(ConfigError, match=r"Unknown eval_mode 'best'\. Known: mode, sample"):
        settings(tmp_path, eval_mode="best")


def test_metrics_lines_count_apart(tmp_path: Path) -> None:
    train(settings(tmp_path, eval_every=20, eval_episodes=3), SILENT)
    lines = lines_of(tmp_path)
    logged = [line for line in lines if "eval/return" not in line]
    assert [line["step"] for line in logged] == [10, 20, 30, 40, 50, 60]
    assert all({"step", "env_frames", "updates", "wall_clock_s"} <= set(line) for line in lines)
    assert logged[-1]["episode/return"] == 15.0
    assert logged[-1]["number"] == 1.0
    assert [line["step"] for line in lines if "eval/return" in line] == [20, 40, 60]
    assert [line["eval/return"] for line in lines if "eval/return" in line] == [15.0] * 3


def test_prefill_delays_learning(tmp_path: Path) -> None:
    train(settings(tmp_path, prefill=40), SILENT)
    assert all(line["updates"] == 0 for line in lines_of(tmp_path) if line["step"] < 40)
    assert abs(summary_of(tmp_path)["updates"] - 20 // 4) <= 1


def test_ten_saved_and_ten_more_equal_twenty(tmp_path: Path) -> None:
    straight = Trainer(settings(tmp_path / "a", steps=40), SILENT)
    straight.run()
    straight.save()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    continued = Trainer(settings(tmp_path / "b", steps=40), SILENT)
    assert continued.state.counters == straight.state.counters
    for _ in range(10):
        straight.learner.update()
    # Drawn after the other ten: the generators, the queue and the rows must all be as saved.
    torch.manual_seed(99)
    continued.close()
    continued = Trainer(settings(tmp_path / "b", steps=40), SILENT)
    for _ in range(10):
        continued.learner.update()
    assert torch.equal(continued.state.agent.weight, straight.state.agent.weight)  # type: ignore[attr-defined]
    assert continued.state.counters.updates == straight.state.counters.updates
    straight.close()
    continued.close()


def test_the_same_command_continues_and_then_is_finished(tmp_path: Path) -> None:
    said: list[str] = []
    train(settings(tmp_path, steps=30), SILENT)
    first = summary_of(tmp_path)
    train(settings(tmp_path, steps=60, log_every=5), said.append)
    second = summary_of(tmp_path)
    assert any("continuing" in text and "step 30" in text for text in said)
    assert second["agent_steps"] == 60
    assert second["updates"] > first["updates"]
    assert second["wall_clock_s"] > first["wall_clock_s"]
    said.clear()
    assert train(settings(tmp_path, steps=60), said.append) == 0
    assert "finished already" in said[0]
    assert summary_of(tmp_path) == second


def test_a_continued_run_marks_where_the_episode_broke(tmp_path: Path) -> None:
    train(settings(tmp_path, steps=33), SILENT)  # stops inside an episode
    trainer = Trainer(settings(tmp_path, steps=66), SILENT)
    trainer.run()
    rows = trainer.state.replay.rows(0, 0, int(trainer.state.replay.counts[0]))
    step = rows["count"][:, 1]
    jumps = (step[1:] != step[:-1] + 1).nonzero()[0] + 1
    assert rows["is_first"][jumps].all()
    assert rows["is_last"][jumps - 1].all()
    broken = [j for j in jumps if step[j - 1] < 5]
    assert len(broken) == 1
    assert not rows["is_terminal"][broken[0] - 1]  # cut off, not over
    trainer.close()


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    config = settings(tmp_path, steps=60)
    trainer = Trainer(config, SILENT)
    trainer.config = replace(config, steps=30)
    trainer.run()  # saves at step 30
    trainer.config = config
    trainer.save = lambda: None  # type: ignore[method-assign]
    trainer.run()
    trainer.close()
    assert lines_of(tmp_path)[-1]["step"] == 60
    train(config, SILENT)  # as after a kill
    steps = [line["step"] for line in lines_of(tmp_path)]
    assert steps == [10, 20, 30, 40, 50, 60, 60]  # the last one is the evaluation's


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(settings(tmp_path, steps=20), SILENT)
    kept = files_of(tmp_path)
    other = settings(tmp_path, steps=40, seed=5)
    other = replace(other, env=replace(other.env, kwargs={"length": 7}))
    with pytest.raises(ConfigError, match=r"(?s)env.kwargs.length: there 5, asked for 7.*seed"):
        train(other, SILENT)
    assert files_of(tmp_path) == kept


def test_other_settings_need_a_word_of_consent(tmp_path: Path) -> None:
    train(settings(tmp_path, steps=20), SILENT)
    with pytest.raises(ConfigError, match=r"train_ratio: there 2.0, asked for 4.0.*\n.*accept_ch"):
        train(settings(tmp_path, steps=40, train_ratio=4.0), SILENT)
    said: list[str] = []
    config = settings(tmp_path, steps=40, train_ratio=4.0, accept_changes=True)
    assert train(config, said.append) == 0
    assert "train_ratio: there 2.0, asked for 4.0" in said[0]
    assert summary_of(tmp_path)["config"]["train_ratio"] == 4.0
    assert train(settings(tmp_path, steps=60, train_ratio=4.0), SILENT) == 0  # the new ones hold


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    train(settings(tmp_path, steps=20), SILENT)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"weight: needed \[5\], checkpoint has \[3\]"):
        train(settings(tmp_path, steps=40, agent=CountingConfig(width=5)), SILENT)


def test_an_update_that_is_not_finite_is_skipped_and_kept(tmp_path: Path) -> None:
    said: list[str] = []
    train(settings(tmp_path, agent=CountingConfig(bad_update=5)), said.append)
    (line,) = [text for text in said if "skipped update" in text]
    assert "skipped update 5: the loss is nan. Batch and state are in" in line
    (path,) = (tmp_path / "nonfinite").iterdir()
    kept = torch.load(path, weights_only=True)
    assert kept["batch"]["obs.count"].shape[:2] == (2, 4)
    assert kept["agent"]["updates"] == 5
    summary = summary_of(tmp_path)
    assert summary["skipped_updates"] == 1
    assert summary["rollbacks"] == 0
    assert lines_of(tmp_path)[-1]["skipped_updates"] == 1
    healthy = settings(tmp_path / "b")
    train(healthy, SILENT)
    assert summary["updates"] == summary_of(tmp_path / "b")["updates"] - 1


def test_many_in_a_row_send_the_run_back_with_a_lower_rate(tmp_path: Path) -> None:
    said: list[str] = []
    agent = CountingConfig(bad_from=5, cure=0.3)  # 1 and 0.5 are too fast, 0.25 is not
    train(settings(tmp_path, agent=agent, nonfinite_limit=3), said.append)
    back = [text for text in said if "Went back to step 0" in text]
    assert [text[-9:] for text in back] == ["(1 of 3).", "(2 of 3)."]
    saved = checkpoint.load(tmp_path)
    assert saved["agent"]["rate"] == 0.25
    assert saved["counters"]["rollbacks"] == 2
    steps = [line["step"] for line in lines_of(tmp_path) if "eval/return" not in line]
    assert steps == [10, 20, 30, 40, 50, 60]  # those of the lost attempts are gone
    assert len(list((tmp_path / "nonfinite").iterdir())) == 3


def test_a_run_that_stays_not_finite_stops_with_the_reason(tmp_path: Path) -> None:
    agent = CountingConfig(bad_from=9, cure=0.0)
    config = settings(tmp_path, agent=agent, nonfinite_limit=2, max_rollbacks=2)
    config = replace(config, checkpoint_minutes=1e-9)  # after every step
    with pytest.raises(RunError, match=r"(?s)2 updates in a row .*nan.* back .* 2 times .*stopped"):
        train(config, SILENT)
    saved = checkpoint.load(tmp_path)
    assert saved["counters"]["updates"] == 8  # none of the bad ones, and none before them is lost
    assert saved["agent"]["rate"] == 0.25
    assert not (tmp_path / "summary.json").exists()


def test_a_folder_that_lost_its_checkpoints_is_not_started_anew(tmp_path: Path) -> None:
    train(settings(tmp_path, steps=20), SILENT)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "summary.json").unlink()
    with pytest.raises(RunError, match=r"metrics.jsonl of an earlier run, but none of its checkp"):
        train(settings(tmp_path, steps=20), SILENT)
    assert list((tmp_path / "replay").iterdir())


def test_settings_that_never_learn_are_refused(tmp_path: Path) -> None:
    few = settings(tmp_path, steps=20)
    few = replace(few, replay=replace(few.replay, capacity=4.0))
    with pytest.raises(ConfigError, match=r"replay.capacity holds 4 rows"):
        train(few, SILENT)
    with pytest.raises(ConfigError, match=r"steps=20 must be more than prefill=20"):
        train(settings(tmp_path / "b", steps=20, prefill=20), SILENT)


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings(tmp_path, steps=20), SILENT)
    kept = files_of(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="disk is full"):
        train(settings(tmp_path, steps=40), SILENT)
    monkeypatch.undo()
    assert files_of(tmp_path) == kept
    assert train(settings(tmp_path, steps=40), SILENT) == 0
    assert summary_of(tmp_path)["agent_steps"] == 40


def test_refuses_a_run_that_cannot_fit_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match="only 0 GB are free"):
        train(settings(tmp_path), SILENT)


def test_a_file_cannot_be_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"cannot be written to \(it is a file\)\. Give another run="
    ):
        train(settings(tmp_path / "file"), SILENT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    config = settings(tmp_path, steps=100_000)
    before = signal.getsignal(number)
    trainer = Trainer(config, SILENT)
    step = trainer.state.collector.step

    def step_then_signal(*args: Any) -> Any:
        if trainer.state.collector.steps == 25:
            signal.raise_signal(number)
        return step(*args)

    trainer.state.collector.step = step_then_signal  # type: ignore[method-assign]
    assert trainer.run() == number
    trainer.close()
    assert signal.getsignal(number) is before
    saved = checkpoint.load(tmp_path)["counters"]
    assert 25 <= saved["agent_steps"] <= 27


def test_the_time_limit_ends_a_run(tmp_path: Path) -> None:
    train(settings(tmp_path, steps=10**9, max_minutes=0.01), SILENT)
    summary = summary_of(tmp_path)
    assert 0.6 <= summary["wall_clock_s"] < 5
    said: list[str] = []
    train(settings(tmp_path, steps=10**9, max_minutes=0.01), said.append)
    assert "finished already" in said[0]


def test_the_time_ends_the_first_updates_too(tmp_path: Path) -> None:
    train(settings(tmp_path, steps=10**9, first_updates=10**6, max_minutes=0.01), SILENT)
    summary = summary_of(tmp_path)
    assert 0 < summary["updates"] < 10**5
    assert 0.6 <= summary["wall_clock_s"] < 30


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="steps is 0; allowed: 1 to inf"):
        TrainConfig(steps=0)
    with pytest.raises(ConfigError, match="train_ratio is -1"):
        TrainConfig(train_ratio=-1)
    config = TrainConfig(env=EnvConfig(id="ALE/Pong-v5"), agent=CountingConfig(name="random"))
    assert config.folder == Path("runs/ALE-Pong-v5-random-0")
