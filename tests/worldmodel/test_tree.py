"""Functions over nested containers of tensors and arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from worldmodel import tree


class Pair(NamedTuple):
    left: Any
    right: Any


def state(value: float = 0.0, rows: int = 2) -> Pair:
    array = np.full((rows, 1), value, np.float32)
    return Pair(torch.full((rows, 3), value), {"array": array, "many": [torch.zeros(rows), None]})


def test_map_keeps_containers_and_what_is_no_array() -> None:
    found = tree.map(lambda a, b: a + 2 * b, state(1.0), state(3.0))
    assert type(found) is Pair
    assert found.left.tolist() == [[7.0] * 3] * 2
    assert isinstance(found.right["array"], np.ndarray)
    assert found.right["array"].tolist() == [[7.0]] * 2
    assert found.right["many"][1] is None
    assert tree.map(lambda x: x, (1, "word", None)) == (1, "word", None)


def test_leaves_have_dotted_names_in_order() -> None:
    names = [name for name, _ in tree.leaves(state())]
    assert names == ["left", "right.array", "right.many.0", "right.many.1"]
    assert [len(x) for x in tree.tensors(state())] == [2, 2]
    assert tree.batch_size(state(rows=5)) == 5
    assert tree.device(state()) == torch.device("cpu")
    assert tree.device(None) == torch.device("cpu")
    with pytest.raises(ValueError, match="no leaf with a batch axis"):
        tree.batch_size((None, 3))


def test_stacking_and_joining_are_undone_by_indexing() -> None:
    parts = [state(1.0), state(2.0)]
    stacked, joined = tree.stack(parts, 1), tree.cat(parts)
    assert stacked.left.shape == (2, 2, 3)
    assert joined.right["array"].shape == (4, 1)
    assert torch.equal(tree.index(stacked, (slice(None), 1)).left, parts[1].left)
    assert np.array_equal(tree.index(joined, slice(2)).right["array"], parts[0].right["array"])


def test_where_chooses_rows_of_either_tree() -> None:
    mask = np.array([True, False])
    for given in (mask, torch.from_numpy(mask)):
        found = tree.where(given, state(1.0), state(2.0))
        assert found.left[:, 0].tolist() == [1.0, 2.0]
        assert found.right["array"][:, 0].tolist() == [1.0, 2.0]


def test_trees_of_other_structure_are_refused() -> None:
    for other in (Pair(torch.zeros(1), {}), (torch.zeros(1),), Pair(torch.zeros(1), [])):
        with pytest.raises(ValueError, match="These trees differ"):
            tree.map(lambda a, b: a, state(), other)


def test_a_checkpoint_has_plain_containers_and_gives_the_tree_back() -> None:
    before = state(4.0)
    plain = tree.to_plain(before)
    assert type(plain) is list
    assert isinstance(plain[1]["array"], torch.Tensor)
    before.left.zero_()
    assert plain[0].tolist() == [[4.0] * 3] * 2  # a copy
    after = tree.from_plain(state(), plain)
    assert type(after) is Pair
    assert after.left.tolist() == [[4.0] * 3] * 2
    assert after.right["array"].dtype == np.float32
    assert isinstance(tree.to_arrays(plain)[0], np.ndarray)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (state(rows=3), r"state\.0 must be torch.float32 \[2, 3\]"),
        (Pair(torch.zeros(2, 3), {"array": np.zeros((2, 1), np.float32)}), r"state\.1 must hold"),
        (Pair(torch.zeros(2, 3), None), r"state\.1 must hold array, many, not None"),
        ([torch.zeros(2, 3)], "state must be a list of 2"),
    ],
)
def test_what_does_not_fit_is_named(other: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tree.from_plain(state(), tree.to_plain(other))
