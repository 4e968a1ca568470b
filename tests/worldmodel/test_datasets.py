"""Recordings of others: which action led where, how episodes ended, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.replay import Replay, ReplayConfig
from worldmodel.replay.datasets import Convention, Dataset, DatasetError
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

BOX = spaces.Box(-2.0, 2.0, (1,), np.float32)
PICTURES = EnvSpec({"image": ObsSpec("image", (32, 32, 3))}, ActionSpec("continuous", (1,)))

Arrays = dict[str, np.ndarray]


def steps(length: int = 6, episode: int = 0) -> Arrays:
    """An episode whose every number names its step: o_t = 100 e + t, a_t = (t + 1) / 10 leads from
    t to t + 1 and earns t + 1."""
    t = np.arange(length + 1, dtype=np.float32)
    image = np.zeros((length + 1, 32, 32, 3), np.uint8)
    image[:] = t[:, None, None, None]
    return {
        "image": image,
        "state": np.stack([100 * episode + t, -t], 1),
        "action": (t[1:, None] / 10),
        "reward": t[1:],
    }


def taken_at(arrays: Arrays, last: bool = True) -> Arrays:
    """Each action beside the observation that it was chosen at, as D4RL writes them."""
    out = {k: v[:-1] for k, v in arrays.items() if k in ("image", "state")}
    if last:
        out |= {f"next_{k}": arrays[k][1:] for k in out}
    return out | {"action": arrays["action"], "reward": arrays["reward"]}


def led_to(arrays: Arrays) -> Arrays:
    """Each action beside the observation that it led to, zeros beside the first."""
    out = dict(arrays)
    for key in ("action", "reward"):
        out[key] = np.concatenate([np.zeros_like(arrays[key][:1]), arrays[key]])
    return out


def together(parts: list[Arrays]) -> Arrays:
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def save(folder: Path, parts: list[Arrays], **extra: Any) -> str:
    folder.mkdir(exist_ok=True)
    for i, arrays in enumerate(parts):
        np.savez(folder / f"episode-{i}.npz", **arrays, **extra)
    return str(folder)


def replay_of(dataset: Dataset) -> Replay:
    replay = Replay(dataset.spec, ReplayConfig(capacity=200), 1)
    dataset.fill(replay)
    return replay


def check(dataset: Dataset, lengths: list[int], scale: float = 1.0) -> Replay:
    """Every row of the replay is aligned as worldmodel.types draws it."""
    replay = replay_of(dataset)
    found = replay.episodes(complete=True)
    assert [stop - start - 1 for _, start, stop in found] == lengths
    for number, place in enumerate(found):
        rows = replay.rows(*place)
        t = np.arange(place[2] - place[1])
        assert np.array_equal(rows["state"][:, 0], 100 * number + t)
        assert np.allclose(rows["action"][:, 0], t / 10 / scale)  # a_{t-1} beside o_t, 0 at first
        assert np.array_equal(rows["reward"], t)
        assert rows["is_first"].tolist() == [True] + [False] * (len(t) - 1)
        assert rows["is_last"].tolist() == [False] * (len(t) - 1) + [True]
        assert np.array_equal(rows["image"][:, 3, 4, 1], t)
    return replay


# Alignment


@pytest.mark.parametrize("way", ["between", "taken_at", "led_to"])
def test_every_way_of_recording_becomes_the_same_rows(tmp_path: Path, way: str) -> None:
    shape = {"between": lambda x: x, "taken_at": taken_at, "led_to": led_to}[way]
    parts = [shape(steps(6, 0)), shape(steps(4, 1))]
    dataset = Dataset(save(tmp_path / "d", parts))
    check(dataset, [6, 4])
    assert dataset.rows == 12
    meaning = {"between": "leads from", "taken_at": "was chosen at", "led_to": "led to"}[way]
    assert any(meaning in line for line in dataset.findings)


def test_a_file_with_several_episodes_is_parted(tmp_path: Path) -> None:
    parts = [taken_at(steps(6, 0)), taken_at(steps(4, 1))]
    ends = np.zeros(10, bool)
    ends[[5, 9]] = True
    np.savez(tmp_path / "flat.npz", **together(parts), terminals=ends & False, timeouts=ends)
    check(Dataset(str(tmp_path / "flat.npz")), [6, 4])
    rows = [led_to(steps(6, 0)), led_to(steps(4, 1))]
    first = np.zeros(12, bool)
    first[[0, 7]] = True
    np.savez(tmp_path / "rows.npz", **together(rows), is_first=first)
    check(Dataset(str(tmp_path / "rows.npz")), [6, 4])
    stacked = {k: np.stack([v, v]) for k, v in steps(5).items()}
    stacked["state"][1, :, 0] += 100
    np.savez(tmp_path / "stacked.npz", **stacked)
    check(Dataset(str(tmp_path / "stacked.npz")), [5, 5])


def test_equal_lengths_without_a_hint_are_asked_for(tmp_path: Path) -> None:
    parts = [taken_at(steps(6, 0), last=False), taken_at(steps(4, 1), last=False)]
    place = save(tmp_path / "d", parts)
    with pytest.raises(DatasetError, match="offline_alignment=taken_at or =led_to"):
        Dataset(place)
    check(Dataset(place, Convention("taken_at")), [5, 3])  # nobody saw where the last one led
    replay = replay_of(Dataset(place, Convention("led_to")))
    assert replay.rows(0, 0, 3)["action"][:, 0] == pytest.approx([0, 0.2, 0.3])


def test_what_is_asked_for_must_not_contradict_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="says otherwise: 7 observations for 6 actions"):
        Dataset(save(tmp_path / "d", [steps()]), Convention("led_to"))


@pytest.mark.parametrize("change", ["action", "reward", "terminals"])
def test_lengths_that_fit_nothing_are_refused(tmp_path: Path, change: str) -> None:
    arrays = {**steps(), "terminals": np.zeros(6, bool)}
    arrays[change] = arrays[change][:-2]
    words = "observations differ in length|observations for|entries for"
    with pytest.raises(DatasetError, match=words):
        Dataset(save(tmp_path / "d", [arrays]))


def test_shuffled_steps_are_noticed(tmp_path: Path) -> None:
    arrays = taken_at(steps())
    order = np.array([3, 1, 0, 2, 5, 4])
    with pytest.raises(DatasetError, match="shuffled"):
        Dataset(save(tmp_path / "d", [{k: v[order] for k, v in arrays.items()}]))


# Ends


def test_terminated_and_truncated_are_two_things(tmp_path: Path) -> None:
    last = np.arange(6) == 5
    one, other = steps(), steps(6, 1)
    save(tmp_path / "d", [{**one, "terminations": last, "truncations": last & False}])
    np.savez(tmp_path / "d" / "x.npz", **other, terminations=last & False, truncations=last)
    replay = check(Dataset(str(tmp_path / "d")), [6, 6])
    assert [replay.rows(*e)["is_terminal"][-1] for e in replay.episodes()] == [True, False]


def test_a_lone_done_is_asked_for(tmp_path: Path) -> None:
    place = save(tmp_path / "d", [{**steps(), "done": np.arange(6) == 5}])
    with pytest.raises(DatasetError, match="offline_done=terminated or offline_done=truncated"):
        Dataset(place)
    for says, expected in (("terminated", True), ("truncated", False)):
        rows = replay_of(Dataset(place, Convention(done=says))).rows(0, 0, 7)
        assert rows["is_terminal"][-1] == expected
        assert not rows["is_terminal"][:-1].any()


def test_an_end_that_nobody_saw_is_told(tmp_path: Path) -> None:
    arrays = {**taken_at(steps(), last=False), "terminals": np.arange(6) == 5}
    dataset = Dataset(save(tmp_path / "d", [arrays]), Convention("taken_at"))
    assert any("left out, 1 of them terminal" in line for line in dataset.findings)


# Actions and observations


def test_actions_are_scaled_as_the_environment_says(tmp_path: Path) -> None:
    place = save(tmp_path / "d", [steps(12)])  # up to 1.2
    check(Dataset(place, action_space=BOX), [12], scale=2)
    check(Dataset(place, Convention(action_range=(-4.0, 4.0))), [12], scale=4)
    with pytest.raises(DatasetError, match="nobody says how far"):
        Dataset(place)
    with pytest.raises(DatasetError, match=r"0\.1 to 1\.2, but the action space is"):
        Dataset(place, action_space=spaces.Box(-1.0, 1.0, (1,)))
    hint = Dataset(save(tmp_path / "e", [steps(5)]), action_space=BOX).findings
    assert any("offline_action_range=[-1,1]" in line for line in hint)


def test_discrete_actions_become_one_hot(tmp_path: Path) -> None:
    arrays = {**steps(3), "action": np.array([2, 0, 1])}
    dataset = Dataset(save(tmp_path / "d", [arrays]))
    assert dataset.spec.action == ActionSpec("discrete", (3,))
    rows = replay_of(dataset).rows(0, 0, 4)
    assert rows["action"].tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    with pytest.raises(DatasetError, match="action space is Discrete"):
        Dataset(str(tmp_path / "d"), action_space=spaces.Discrete(2))
    hot = {**steps(3), "action": np.eye(3, dtype=np.float32)[[2, 0, 1]]}
    same = Dataset(save(tmp_path / "e", [hot]), action_space=spaces.Discrete(3))
    assert np.array_equal(replay_of(same).rows(0, 0, 4)["action"], rows["action"])


def test_pictures_come_in_many_shapes(tmp_path: Path) -> None:
    arrays = steps()
    picture = arrays["image"]
    variants = {
        "channels first": picture.transpose(0, 3, 1, 2),
        "real": picture.astype(np.float32) / 255,
        "large": picture.repeat(2, 1).repeat(2, 2),
    }
    for name, value in variants.items():
        place = save(tmp_path / name, [{**arrays, "image": value}])
        dataset = Dataset(place, spec=PICTURES, action_space=spaces.Box(-1, 1, (1,)))
        rows = replay_of(dataset).rows(0, 0, 7)
        assert rows["image"].shape == (7, 32, 32, 3)
        assert np.array_equal(rows["image"][:, 5, 6, 2], np.arange(7)), name
        assert any("not used: state" in line for line in dataset.findings)
    sized = Dataset(save(tmp_path / "large", [arrays | {"image": variants["large"]}]),
                    image_size=(32, 32))  # fmt: skip
    assert sized.spec.obs["image"].shape == (32, 32, 3)
    assert Dataset(str(tmp_path / "large")).spec.obs["image"].shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": np.full((7, 2), np.nan, np.float32)}, "'state' is not finite at row 0"),
        ({"reward": np.full(6, np.inf)}, "reward of step 0 is not finite"),
        ({"action": np.full((6, 1), np.nan)}, "action of step 0 is not finite"),
        ({"image": np.zeros((7, 32, 32, 3), np.int64)}, "pictures 'image' are int64"),
        ({"image": np.full((7, 32, 32, 3), 300.0)}, "which of its values are black"),
        ({"reward": np.zeros((6, 2))[None]}, "reward"),
        ({"done": np.full(6, 3)}, "the flags for 'done' hold 3; allowed are True and False"),
        ({"is_terminal": np.arange(6) == 2}, "holds several episodes, so all its arrays"),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, change: Mapping[str, Any], words: str) -> None:
    place = save(tmp_path / "d", [{**steps(), **change}])
    with pytest.raises(DatasetError, match=words):
        Dataset(place)


def test_what_does_not_fit_the_environment_is_named(tmp_path: Path) -> None:
    place = save(tmp_path / "d", [{k: v for k, v in steps().items() if k != "image"}])
    unit = spaces.Box(-1, 1, (1,))
    with pytest.raises(DatasetError, match="image is missing"):
        Dataset(place, spec=PICTURES, action_space=unit)
    five = EnvSpec({"state": ObsSpec("vector", (5,))}, PICTURES.action)
    with pytest.raises(DatasetError, match="'state' has 2 numbers, but"):
        Dataset(place, spec=five, action_space=unit)


@pytest.mark.parametrize("name", ["nowhere", "empty", "notes.txt", "broken.npz", "broken.h5"])
def test_what_is_no_dataset_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("notes.txt", "broken.npz", "broken.h5"):
        (tmp_path / file).write_text("no")
    if name.endswith("h5"):
        pytest.importorskip("h5py")
    with pytest.raises(DatasetError, match=r"does not exist|no dataset|cannot be read"):
        Dataset(str(tmp_path / name))


# Other sources


def test_hdf5_flat_and_in_groups(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "groups.hdf5", "w") as file:
        for number in (10, 2):  # 2 comes first
            episode = steps(4, int(number == 10))
            group = file.create_group(f"data/demo_{number}")
            group["actions"], group["rewards"] = episode["action"], episode["reward"]
            group["obs/image"], group["obs/state"] = episode["image"], episode["state"]
    check(Dataset(str(tmp_path / "groups.hdf5")), [4, 4])
    flat = together([taken_at(steps(6, 0)), taken_at(steps(4, 1))])
    ends = np.zeros(10, bool)
    ends[[5, 9]] = True
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        for key, value in flat.items():
            file[key] = value
        file["timeouts"], file["infos/speed"] = ends, np.zeros(10)
    dataset = Dataset(str(tmp_path / "flat.h5"))
    check(dataset, [6, 4])
    assert any("not used: infos/speed" in line for line in dataset.findings)


def test_our_own_replay_comes_as_it_is(tmp_path: Path) -> None:
    source = replay_of(Dataset(save(tmp_path / "d", [steps(6, 0), steps(4, 1)])))
    source.save(tmp_path / "replay")
    source.commit()
    dataset = Dataset(str(tmp_path / "replay"))
    assert dataset.spec == source.spec
    check(dataset, [6, 4])
    wrist = EnvSpec({"wrist": ObsSpec("image", (32, 32, 3))}, source.spec.action)
    with pytest.raises(DatasetError, match="'wrist' is missing instead of"):
        Dataset(str(tmp_path / "replay"), spec=wrist)


def test_the_replay_must_hold_it(tmp_path: Path) -> None:
    dataset = Dataset(save(tmp_path / "d", [steps()]))
    with pytest.raises(DatasetError, match=r"7 rows, but the replay holds 5.*replay\.capacity"):
        dataset.fill(Replay(dataset.spec, ReplayConfig(capacity=5), 1))


def test_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for number in range(2):
        arrays = steps(5, number)
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations={"state": list(arrays["state"]), "image": list(arrays["image"])},
                actions=list(2 * arrays["action"]),
                rewards=[float(r) for r in arrays["reward"]],
                terminations=[False] * 4 + [number == 0],
                truncations=[False] * 4 + [number == 1],
                infos={},
            )
        )
    observed = spaces.Dict(
        {"state": spaces.Box(-1e3, 1e3, (2,)), "image": spaces.Box(0, 255, (32, 32, 3), np.uint8)}
    )
    minari.create_dataset_from_buffers(
        "ours/test-v0", buffers, action_space=BOX, observation_space=observed,
        algorithm_name="none", author="us", author_email="us@example.org", code_permalink="none",
    )  # fmt: skip
    dataset = Dataset("minari:ours/test-v0")
    replay = check(dataset, [5, 5])  # its own action space scales the actions back
    assert [replay.rows(*e)["is_terminal"][-1] for e in replay.episodes()] == [True, False]
    with pytest.raises(DatasetError, match="but the environment takes"):
        Dataset("minari:ours/test-v0", action_space=spaces.Box(-1, 1, (1,)))
    with pytest.raises(DatasetError, match=r"There is no Minari dataset|cannot be"):
        Dataset("minari:ours/absent-v0")
