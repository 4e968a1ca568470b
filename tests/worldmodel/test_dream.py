"""Dreams: the context is shown, the rest is imagined, and the picture says which is which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest
import torch

from tests.worldmodel.dream_worlds import CountingWorld, Number, counting_batch
from worldmodel import dream
from worldmodel.dream import films
from worldmodel.types import ActionSpec, Column, EnvSpec, ObsSpec, Prediction


def test_shows_the_context_and_imagines_the_rest() -> None:
    world, batch = CountingWorld(), counting_batch()
    out = dream.open_loop(world, batch, context=4)
    assert world.shown == 4
    expected = 10.0 * torch.arange(12)
    assert torch.allclose(out.shown["vector"][0, :, 0], expected)  # actions lead to their own rows
    assert torch.allclose(out.shown["image"][1, :, 2, 3, 0] * 255, expected)
    assert out.reward[0].tolist() == [0] * 4 + expected[4:].tolist()
    assert out.cont[0].tolist() == [1] * 4 + [0.5] * 8
    assert out.surprise is None


class PackingWorld(CountingWorld):
    """Stores its count."""

    columns: ClassVar[dict[str, Column]] = {"number": Column((), "float32")}

    def pack(self, state: Number) -> dict[str, torch.Tensor]:
        return {"number": state.value[:, 0]}

    def unpack(self, columns: Mapping[str, torch.Tensor]) -> Number:
        number = columns["number"][:, None]
        return Number(number)


def test_starts_from_the_stored_context() -> None:
    batch = counting_batch()
    batch.context = {"number": torch.tensor([7.0, 7.0])}
    world = PackingWorld()
    seen = []
    observe = world.observe
    world.observe = lambda state, *rest: seen.append(state) or observe(state, *rest)  # type: ignore
    dream.open_loop(world, batch, context=2)
    dream.open_loop(world, batch, context=2, start=Number(torch.ones(2, 1)))
    batch.context = {}  # those of another world, say, or none
    dream.open_loop(world, batch, context=2)
    assert [state.value.tolist() for state in seen[::2]] == [[[7.0]] * 2, [[1.0]] * 2, [[0.0]] * 2]


def test_several_dreams_go_on_from_each_sequence_and_their_mean_is_shown() -> None:
    world, batch = CountingWorld(), counting_batch()
    step = world.step

    def forking(state: Number, action: torch.Tensor) -> Prediction:
        after = step(state, action)  # 2 sequences, 4 dreams of each: number 0 to 7
        return after._replace(reward=after.reward + torch.arange(len(action)) ** 2)

    world.step = forking  # type: ignore[method-assign]
    one, mean = (dream.open_loop(world, batch, context=4, dreams=k) for k in (1, 4))
    assert mean.shown["image"].shape == one.shown["image"].shape
    assert torch.allclose(mean.shown["vector"], one.shown["vector"])
    apart = mean.reward - one.reward
    assert apart[0].tolist() == pytest.approx([0] * 4 + [(0 + 1 + 4 + 9) / 4 - 0] * 8)
    assert apart[1].tolist() == pytest.approx([0] * 4 + [(16 + 25 + 36 + 49) / 4 - 1] * 8)
    with pytest.raises(ValueError, match="dreams=0: at least one"):
        dream.open_loop(world, batch, context=4, dreams=0)


@pytest.mark.parametrize("context", [0, 12, 13])
def test_refuses_a_context_that_leaves_no_dream(context: int) -> None:
    with pytest.raises(ValueError, match=f"context={context} must be at least 1"):
        dream.open_loop(CountingWorld(), counting_batch(), context)


def test_film_has_truth_prediction_and_error() -> None:
    batch = counting_batch()
    predicted = torch.full((12, 8, 8, 3), 60 / 255)
    frames = films.rows(batch.obs["image"][0], predicted, batch.is_first[0], context=4)
    assert len(frames) == 12
    truth, ours, error = np.split(frames[2], 3, 0)
    assert (truth == 20).all()
    assert (ours == 60).all()  # no border: the model was shown this one
    assert (error == (60 - 20 + 255) // 2).all()
    truth, ours, error = np.split(frames[6], 3, 0)
    assert (error == 127).all()  # right: mid-grey, the border left out of account
    assert (ours[0] == dream.MARK).all()
    assert (ours[1:-1, 1:-1] == 60).all()


def test_film_ends_where_another_episode_begins() -> None:
    batch = counting_batch(first=(0, 2, 9))
    predicted = torch.zeros(12, 8, 8, 3)
    frames = films.rows(batch.obs["image"][0], predicted, batch.is_first[0], context=4)
    assert len(frames) == 9


@pytest.mark.parametrize("count", [5, 8, 12, 50])
def test_strip_marks_where_imagination_starts(count: int) -> None:
    frames = [np.full((24, 8, 3), i, np.uint8) for i in range(count)]
    picture = dream.strip(frames, context=4, columns=8, side=32)
    assert picture.shape[0] == films.LINE + 24 * 4 + 2 * 2
    line = (picture == dream.MARK).all(-1).all(0)
    assert line.any()
    middle = picture[films.LINE + 4 * 4, :, 0]
    before, after = middle[: int(line.argmax())], middle[int(line.argmax()) :]
    assert before.max() < 4 or before.max() == films.BLANK  # only frames of the context
    assert count - 1 in after  # the last frame of the dream is shown


def test_titles_count_and_turn_orange_where_imagination_starts() -> None:
    frames = [np.zeros((24, 8, 3), np.uint8) for _ in range(12)]
    shown = dream.titled(frames, context=4, side=64)
    assert len(shown) == 12
    orange = [(frame == dream.MARK).all(-1).any() for frame in shown]
    assert orange == [False] * 4 + [True] * 8
    assert len({frame.tobytes() for frame in shown}) == 12  # the counter moves
    assert all(side % 16 == 0 for side in shown[0].shape[:2])  # a video keeps every pixel


def test_coarse_colours_keep_black_white_and_nearly_the_rest() -> None:
    frame = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    (found,) = films.coarse([frame])
    assert (found[0, 0, 0], found[-1, -1, 0]) == (0, 255)
    assert len(np.unique(found)) == 32
    assert abs(found.astype(int) - frame).max() <= 8


def test_rows_of_frames_lines_actions_up_with_the_frames_they_led_to() -> None:
    spec = EnvSpec({"image": ObsSpec("image", (8, 8, 3))}, ActionSpec("discrete", (3,)))
    frames = {"image": np.zeros((3, 8, 8, 3), np.uint8)}
    batch = dream.rows_of_frames(spec, frames, [2, 0])
    assert batch.shape == (1, 3)
    assert batch.action[0].tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert batch.is_first[0].tolist() == [True, False, False]
    with pytest.raises(ValueError, match="T frames of every key need T - 1 actions"):
        dream.rows_of_frames(spec, frames, [1])
    with pytest.raises(ValueError, match=r"'image' has shape \[8, 8, 3\]; needed: \[T, 8, 8, 3\]"):
        dream.rows_of_frames(spec, {"image": frames["image"][0]})
    with pytest.raises(ValueError, match=r"The frames lack \['image'\]"):
        dream.rows_of_frames(spec, {})


def test_follow_equals_one_call_over_the_sequence() -> None:
    states = dream.follow(CountingWorld(), counting_batch())
    assert states.value[1, :, 0].tolist() == [10.0 * t for t in range(12)]


def test_cut_keeps_the_context_only_of_the_first_row() -> None:
    batch = counting_batch()
    batch.context = {"number": torch.ones(2)}
    head = dream.cut(batch, slice(0, 1), slice(0, 5))
    assert head.shape == (1, 5)
    assert head.obs["image"].shape == (1, 5, 8, 8, 3)
    assert head.action.shape == (1, 5, 1)
    assert head.context["number"].shape == (1,)
    assert dream.cut(batch, slice(None), slice(3, 5)).context == {}
