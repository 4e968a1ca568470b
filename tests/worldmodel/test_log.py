"""Logs: means without waiting, lines that can be read, pictures that can be seen."""

from __future__ import annotations

import json
import math
from io import BytesIO
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldmodel.log import Means, RunLog, as_rgb, enlarged, gif, write_json, write_video


def test_means_are_per_name_and_start_over() -> None:
    means = Means()
    means.add({"a": torch.tensor(1.0, requires_grad=True), "b": 4})
    means.add({"a": torch.tensor(2.0)})
    means.add({"a": torch.tensor(6.0, dtype=torch.float64), "b": 0.0})
    assert means.read() == {"a": 3.0, "b": 2.0}
    assert means.read() == {}


def test_means_of_tensors_are_read_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    means = Means()
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "__float__"):
            patch.setattr(torch.Tensor, name, lambda *_: pytest.fail("waited for the device"))
        for _ in range(3):
            means.add({"loss": torch.ones(())})
    assert means.read() == {"loss": 1.0}


def test_scalars_go_to_both_places(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.scalars(5, {"loss/x": 1.5, "updates": 2.0, "bad": math.nan})
    log.scalars(9, {"loss/x": 0.5})
    log.image(9, "dream/strip", np.zeros((8, 12, 3), np.uint8))
    log.video(9, "dream/film", [np.full((32, 32, 3), 80 * i, np.uint8) for i in range(3)])
    log.flush()
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 5, "loss/x": 1.5, "updates": 2.0, "bad": None}
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss/x")] == [(5, 1.5), (9, 0.5)]
    assert [e.value for e in board.Scalars("run/updates")] == [2.0]
    assert set(board.Tags()["images"]) == {"dream/strip", "dream/film"}
    moving = board.Images("dream/film")[0].encoded_image_string
    assert moving.startswith(b"GIF89a")
    assert len(list((tmp_path / "videos").iterdir())) == 1


def test_a_continued_log_drops_what_was_lost(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.scalars(10, {"x": 10.0})
    log.scalars(20, {"x": 20.0})
    there = log.position()
    log.scalars(20, {"x": 21.0})  # of the same step, but later than the checkpoint
    log.scalars(30, {"x": 30.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "x"')  # cut off by a kill
    (tmp_path / "events.out.tfevents.9999999999.of.a.killed.run").write_bytes(b"x")
    log = RunLog(tmp_path, there)
    log.scalars(40, {"x": 40.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [(line["step"], line["x"]) for line in lines] == [(10, 10.0), (20, 20.0), (40, 40.0)]
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in board.Scalars("run/x")] == [(10, 10), (20, 20), (40, 40)]


def test_a_new_log_forgets_an_unsaved_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
    RunLog(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_means_go_on_where_they_were(tmp_path: Path) -> None:
    straight, broken = Means(), Means()
    values = [{"a": torch.tensor(0.1 * i), "b": 0.3 * i} for i in range(9)]
    for value in values:
        straight.add(value)
    for value in values[:4]:
        broken.add(value)
    continued = Means()
    continued.load_state_dict(broken.state_dict())
    for value in values[4:]:
        continued.add(value)
    assert continued.read() == straight.read()


def test_any_number_of_channels_becomes_three() -> None:
    frame = np.arange(2 * 2 * 9, dtype=np.uint8).reshape(2, 2, 9)
    assert np.array_equal(as_rgb(frame[..., :3]), frame[..., :3])
    assert np.array_equal(as_rgb(frame), frame[..., 6:])  # the newest of a stack
    assert np.array_equal(as_rgb(frame[..., :1])[..., 2], frame[..., 0])
    assert as_rgb(frame[..., :2]).shape == (2, 2, 3)


def test_small_pictures_are_enlarged_without_blur(tmp_path: Path) -> None:
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[0, 0] = 255
    large = enlarged(frame)
    assert large.shape == (256, 384, 3)
    assert (large[:8, :8] == 255).all()
    assert large.sum() == 64 * 3 * 255
    assert enlarged(large) is large or enlarged(large).shape == large.shape
    write_video(tmp_path / "a" / "film.mp4", [frame, frame, 255 - frame])
    film = imageio.mimread(tmp_path / "a" / "film.mp4")
    assert len(film) == 3
    assert film[0].shape == (256, 384, 3)
    assert film[0].mean() < 20 < 235 < film[2].mean()
    with pytest.raises(ValueError, match="No frames"):
        write_video(tmp_path / "none.mp4", [])


def test_a_still_film_of_any_length_is_a_gif() -> None:
    """Frames that are alike are stored as one, whose time a GIF writes in two bytes."""
    still = [np.zeros((2, 2, 3), np.uint8)] * 700
    assert gif(still, fps=1)[:3] == b"GIF"


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_a_video_that_ffmpeg_gave_up_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(BytesIO):
        def append_data(self, frame: np.ndarray) -> None:
            """Taken, and never written."""

    def writer(path: Path, **_: object) -> Lost:
        path.write_bytes(b"ftyp mdat")
        return Lost()

    path = tmp_path / "film.mp4"
    path.write_text("before")
    monkeypatch.setattr("imageio.v2.get_writer", writer)
    with pytest.raises(OSError, match=r"ffmpeg did not finish the video '.*film.mp4'"):
        write_video(path, [np.zeros((8, 8, 3), np.uint8)])
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]
