"""Dreams: the context is shown, the rest is imagined, and the picture says which is which."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel import dream
from worldmodel.types import Batch, LatentState, Prediction


class CountingWorld:
    """A world whose state is one number: shown, it is the first pixel; stepped, it grows by the
    action. Its reward is the new number."""

    def __init__(self) -> None:
        self.shown = 0

    def initial(self, batch_size: int) -> LatentState:
        return LatentState(torch.zeros(batch_size, 1), torch.zeros(batch_size, 1, 1))

    def observe(
        self, state: LatentState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> LatentState:
        self.shown += 1
        number = obs["image"][:, 0, 0, :1].float()
        return LatentState(number, state.stoch)

    def step(self, state: LatentState, action: Tensor) -> Prediction:
        number = state.deter + action
        return Prediction(LatentState(number, state.stoch), number[:, 0], torch.ones(len(number)))

    def decode(self, state: LatentState) -> dict[str, Tensor]:
        image = (state.deter / 255)[:, :, None, None].expand(-1, 8, 8, 3)
        return {"image": image, "vector": state.deter}


def counting_batch(length: int = 12, first: tuple[int, ...] = (0,)) -> Batch:
    """Two sequences of images that show their row number times ten; every action is ten."""
    numbers = (10 * torch.arange(length)).byte()[None, :, None, None, None]
    flags = torch.zeros(2, length, dtype=torch.bool)
    flags[:, list(first)] = True
    nothing = torch.zeros(2, length, dtype=torch.bool)
    return Batch(
        {"image": numbers.expand(2, -1, 8, 8, 3)},
        torch.full((2, length, 1), 10.0),
        torch.zeros(2, length),
        flags,
        nothing,
        nothing,
    )


def test_shows_the_context_and_imagines_the_rest() -> None:
    world, batch = CountingWorld(), counting_batch()
    out = dream.open_loop(world, batch, context=4)
    assert world.shown == 4
    expected = 10.0 * torch.arange(12)
    assert torch.allclose(out["vector"][0, :, 0], expected)  # actions lead to their own rows
    assert torch.allclose(out["image"][1, :, 2, 3, 0] * 255, expected)
    assert out["reward"][0].tolist() == [0] * 4 + expected[4:].tolist()


def test_starts_from_the_stored_context() -> None:
    batch = counting_batch()
    batch.context = LatentState(torch.full((2, 1), 7.0), torch.zeros(2, 1, 1))
    world = CountingWorld()
    seen = []
    observe = world.observe
    world.observe = lambda state, *rest: seen.append(state) or observe(state, *rest)  # type: ignore
    dream.open_loop(world, batch, context=2)
    assert seen[0].deter.tolist() == [[7.0], [7.0]]


@pytest.mark.parametrize("context", [0, 12, 13])
def test_refuses_a_context_that_leaves_no_dream(context: int) -> None:
    with pytest.raises(ValueError, match=f"context={context} must be at least 1"):
        dream.open_loop(CountingWorld(), counting_batch(), context)


def test_film_has_truth_prediction_and_error() -> None:
    batch = counting_batch()
    predicted = torch.full((12, 8, 8, 3), 60 / 255)
    film = dream.rows(batch.obs["image"][0], predicted, batch.is_first[0], context=4)
    assert len(film) == 12
    truth, ours, error = np.split(film[2], 3, 0)
    assert (truth == 20).all()
    assert (ours == 60).all()  # no border: the model was shown this one
    assert (error == (60 - 20 + 255) // 2).all()
    truth, ours, error = np.split(film[6], 3, 0)
    assert (error == 127).all()  # right: mid-grey, the border left out of account
    assert (ours[0] == dream.MARK).all()
    assert (ours[1:-1, 1:-1] == 60).all()


def test_film_ends_where_another_episode_begins() -> None:
    batch = counting_batch(first=(0, 2, 9))
    predicted = torch.zeros(12, 8, 8, 3)
    film = dream.rows(batch.obs["image"][0], predicted, batch.is_first[0], context=4)
    assert len(film) == 9


@pytest.mark.parametrize("frames", [5, 8, 12, 50])
def test_strip_marks_where_imagination_starts(frames: int) -> None:
    film = [np.full((24, 8, 3), i, np.uint8) for i in range(frames)]
    picture = dream.strip(film, context=4, columns=8, side=32)
    times = 4
    assert picture.shape[0] == 24 * times + 2 * 2
    line = (picture == dream.MARK).all(-1).all(0)
    assert line.any()
    middle = picture[times * 4, :, 0]
    before, after = middle[: int(line.argmax())], middle[int(line.argmax()) :]
    assert before.max() < 4 or before.max() == dream.BLANK  # only frames of the context
    assert frames - 1 in after  # the last frame of the dream is shown


def test_first_rows_cuts_everything() -> None:
    batch = counting_batch()
    batch.context = LatentState(torch.ones(2, 1), torch.zeros(2, 1, 1))
    head = dream.first_rows(batch, 5)
    assert head.shape == (1, 5)
    assert head.obs["image"].shape == (1, 5, 8, 8, 3)
    assert head.action.shape == (1, 5, 1)
    assert head.context is not None
    assert head.context.deter.shape == (1, 1)
