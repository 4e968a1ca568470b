"""Replay in memory: alignment, draws, columns, the online queue."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from tests.replay_cycles import contents
from tests.replay_rows import COLUMNS, SPEC, add, check, columns_of, make, same
from worldmodel.envs import EnvConfig, env_spec, make_vector
from worldmodel.replay import Replay, ReplayConfig, RowIndex
from worldmodel.types import Column, EnvSpec, ObsSpec


@pytest.mark.parametrize("actions", ["discrete", "multidiscrete", "box"])
def test_rows_of_a_vector_environment_stay_aligned(actions: str) -> None:
    config = EnvConfig(
        id="tests.envs_for_tests:CountingEnv",
        kwargs={"actions": actions, "end": "alternate", "lengths": (5, 3, 6)},
        image_size=[32, 32],
    )
    env = make_vector(config, num_envs=3, seed=1)
    spec = env_spec(env)
    replay = Replay(spec, ReplayConfig(capacity=120), 3, seed=2)
    obs, _ = env.reset()
    action = np.zeros((3, spec.action.size), np.float32)
    reward, first = np.zeros(3), np.ones(3, bool)
    terminated = truncated = np.zeros(3, bool)
    rng = np.random.default_rng(0)
    for _ in range(100):
        flags = {"is_first": first, "is_last": terminated | truncated, "is_terminal": terminated}
        shown = np.where(first[:, None], 0, action).astype(np.float32)
        replay.add({**obs, "action": shown, "reward": np.where(first, 0, reward), **flags})
        first = terminated | truncated
        if actions == "box":
            action = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        else:
            native = np.stack([rng.integers(spec.action.sizes) for _ in range(3)])
            action = spec.action.encode(native[:, 0] if actions == "discrete" else native)
        obs, reward, terminated, truncated, _ = env.step(spec.action.decode(action))
    env.close()
    batch = replay.sample(64, 13)
    episode, step = batch.obs["count"][..., 0].numpy(), batch.obs["count"][..., 1].numpy()
    native = spec.action.decode(batch.action.numpy()).reshape(64, 13, -1)
    native = native * 3 + 1 if actions == "box" else native
    moved = (step > 0)[..., None]
    assert np.allclose(batch.obs["count"][..., 2:].numpy(), np.where(moved, native, 0), atol=1e-5)
    assert np.array_equal(batch.action.abs().sum(-1) > 0, step > 0) or actions == "box"
    assert np.array_equal(batch.reward, step)
    assert np.array_equal(batch.obs["image"][:, :, 0, 0, 0], episode)
    assert np.array_equal(batch.is_first[:, 1:], step[:, 1:] == 0)
    assert batch.is_first[:, 0].all()
    ends = step == np.array([5, 3, 6])[episode.astype(int) % 3]
    assert np.array_equal(batch.is_last, ends)
    assert np.array_equal(batch.is_terminal, ends & (episode % 2 == 0))
    crossed = episode[:, 1:] != episode[:, :-1]
    assert crossed.any()
    assert np.array_equal(crossed, batch.is_first[:, 1:])


@pytest.mark.parametrize("steps", [12, 29, 30, 31, 47, 200])
def test_ring_keeps_the_newest_rows_across_its_edge(steps: int) -> None:
    replay = make(online=False)
    add(replay, steps)
    held = min(steps, 30)
    assert len(replay) == 2 * held
    assert replay.num_sequences(8) == 2 * (held - 7)
    batch = replay.sample(400, 8)
    check(batch)
    assert set(batch.index.start) == set(range(steps - held, steps - 7))
    row = batch.index.start[:, None] + np.arange(8)
    assert np.array_equal(batch.is_first[:, 1:], row[:, 1:] % 7 == 0)
    assert np.array_equal(batch.is_last, row % 7 == 6)
    assert np.array_equal(batch.is_terminal, row % 14 == 6)


@pytest.mark.parametrize(("storage", "num_envs"), [("memory", 3), ("disk", 1), ("disk", 3)])
def test_batches_are_the_rows_one_by_one(storage: str, num_envs: int, tmp_path: Path) -> None:
    """Whether copied in one call from one block, or sequence by sequence from mapped files; across
    the ring's edge; and a batch stays what it was while others are drawn."""
    replay = Replay(SPEC, ReplayConfig(30, storage=storage), num_envs, COLUMNS, directory=tmp_path)
    add(replay, 30 // num_envs + 4)
    batches = [replay.sample(5, 6, online=False, context=COLUMNS) for _ in range(20)]
    for batch in batches:
        places = zip(batch.index.stream.tolist(), batch.index.start.tolist(), strict=True)
        for b, (stream, start) in enumerate(places):
            rows = replay.rows(int(stream), int(start), int(start) + 6)
            for key, value in {**batch.obs, "action": batch.action}.items():
                assert np.array_equal(value[b], rows[key])
            assert np.array_equal(batch.reward[b], rows["reward"])
            assert np.array_equal(batch.is_last[b], rows["is_last"])
            before = int(start) - 1
            if before in range(int(replay.counts[stream]) - 30 // num_envs, int(start)):
                for name, value in columns_of(stream, before).items():
                    assert np.array_equal(batch.context[name][b], value)


def test_draws_are_uniform_over_every_start_of_uneven_streams() -> None:
    replay = make(capacity=150, num_envs=5, online=False)
    for stream, steps in enumerate([120, 9, 3, 30, 0]):
        add(replay, steps, ids=[stream])
    assert replay.num_sequences(4) == 27 + 6 + 0 + 27 + 0
    drawn = [replay.sample(500, 4).index for _ in range(60)]
    starts = np.stack([np.concatenate([getattr(i, k) for i in drawn]) for k in ("stream", "start")])
    _, counts = np.unique(starts, axis=1, return_counts=True)
    assert len(counts) == 60
    expected = 60 * 500 / 60
    chi = ((counts - expected) ** 2 / expected).sum()
    assert 59 - 5 * np.sqrt(2 * 59) < chi < 59 + 5 * np.sqrt(2 * 59)


def test_context_is_what_is_stored_with_the_row_before() -> None:
    replay = make(online=False)
    add(replay, 20)
    add(replay, 3, stored=False)
    add(replay, 20)  # rows 13 ... 42 are left; 20, 21 and 22 have no columns
    batch = replay.sample(500, 3, context=COLUMNS)
    before = batch.index.start - 1
    known = (before >= 13) & ~np.isin(before, [20, 21, 22])
    assert not known.all()
    for name, expected in columns_of(batch.index.stream, before).items():
        assert torch.equal(batch.context[name][known], expected[known])
        assert batch.context[name].dtype == expected.dtype
        assert not batch.context[name][~known].any()
    # Where nothing is known the sequence starts anew, in the batch but not in storage.
    assert np.array_equal(batch.is_first[:, 0], ~known | (batch.index.start % 7 == 0))
    assert np.array_equal(replay.rows(0, 13, 43)["is_first"], np.arange(13, 43) % 7 == 0)
    assert replay.gather(batch.index).is_first[:, 0].all()  # nobody asked for a context


def test_columns_come_with_their_rows_as_far_as_they_are_asked_for() -> None:
    replay = make(online=False)
    add(replay, 20)
    batch = replay.sample(50, 4, columns=["stoch"])
    row = batch.index.start[:, None] + np.arange(4)
    stream = np.broadcast_to(batch.index.stream[:, None], row.shape)
    assert list(batch.columns) == ["stoch"]
    assert torch.equal(batch.columns["stoch"], columns_of(stream, row)["stoch"])
    assert batch.context == replay.sample(50, 4).columns == {}
    with pytest.raises(ValueError, match=r"stores no column 'policy'\. Stored: deter, stoch"):
        replay.sample(1, 4, columns=["policy"])
    with pytest.raises(ValueError, match="stores no column 'value'"):
        replay.sample(1, 4, context=["value"])
    add(replay, 1, stored=False)
    with pytest.raises(ValueError, match="have no columns"):
        replay.gather(RowIndex(np.array([0]), np.array([18]), 3), columns=["deter"])


def test_without_columns_there_is_no_context() -> None:
    replay = make(stored=False)
    add(replay, 10, stored=False)
    batch = replay.sample(4, 3)
    assert batch.context == batch.columns == {}
    assert batch.is_first[:, 0].all()
    with pytest.raises(ValueError, match=r"stores no column 'deter'\. Stored: none"):
        replay.rewrite(batch.index, columns_of(np.zeros((4, 3), int), np.zeros((4, 3), int)))


def test_written_columns_come_back_but_not_in_overwritten_rows() -> None:
    replay = make(online=False)
    add(replay, 30, stored=False)
    index = RowIndex(np.array([0, 1]), np.array([2, 20]), 8)
    probe = RowIndex(np.array([1]), np.array([22]), 2)
    assert replay.gather(probe, context=COLUMNS).is_first[0, 0]
    add(replay, 5, stored=False)  # rows 30 ... 34 lie where 0 ... 4 were
    row = index.start[:, None] + np.arange(8)
    replay.rewrite(index, columns_of(np.broadcast_to(index.stream[:, None], (2, 8)), row))
    at = [(0, r) for r in range(6, 34)] + [(1, r) for r in range(6, 34)]
    stream, start = np.array(at).T
    batch = replay.gather(RowIndex(stream, start, 2), context=COLUMNS)
    before = start - 1
    written = np.where(stream == 0, (before >= 5) & (before <= 9), (before >= 20) & (before <= 27))
    for name, expected in columns_of(stream, before).items():
        assert torch.equal(batch.context[name][written], expected[written])
        assert not batch.context[name][~written].any()
    assert np.array_equal(batch.is_first[:, 0], ~written | (start % 7 == 0))
    with pytest.raises(ValueError, match="held"):
        replay.gather(index)


def test_some_columns_may_be_rewritten_where_all_are_there() -> None:
    columns = {**COLUMNS, "root": Column((), "float32"), "search": Column((2,), "float32", False)}
    replay = Replay(SPEC, ReplayConfig(capacity=20, online=False), 1, columns)
    rows = {k: v[:1] for k, v in good().items()}
    kept = {**rows, "root": np.array([7.0]), "search": np.ones((1, 2))}
    replay.add(kept)
    replay.add(kept)
    index = RowIndex(np.array([0]), np.array([0]), 2)
    replay.rewrite(index, {"root": torch.tensor([[1.5, 2.5]])})
    batch = replay.gather(index, columns=columns)
    assert batch.columns["root"].tolist() == [[1.5, 2.5]]
    assert batch.columns["search"].tolist() == [[[1.0, 1.0]] * 2]
    with pytest.raises(ValueError, match=r"\['search'\] were not declared rewritable"):
        replay.rewrite(index, {"search": np.ones((1, 2, 2), np.float32)})
    replay.add({k: v for k, v in rows.items() if k not in columns})
    index = RowIndex(np.array([0]), np.array([1]), 2)
    with pytest.raises(ValueError, match="have no columns yet"):
        replay.rewrite(index, {"root": torch.zeros(1, 2)})
    assert replay.gather(RowIndex(np.array([0]), np.array([1]), 1), ["root"]).columns["root"] == 2.5


@pytest.mark.parametrize("count", [1, 5, 30, 41, 100])
def test_many_rows_at_once_are_rows_one_by_one(count: int) -> None:
    one, many = make(seed=3), make(seed=3)
    for replay in (one, many):
        add(replay, 8)
    source = make(capacity=1000)
    add(source, 2, ids=[1])
    add(source, count, ids=[1], episode=5)  # begins as if cut off, and so it does in between
    rows = source.rows(1, 2, 2 + count)
    rows["is_last"] &= np.arange(count) % 3 > 0  # some episodes are cut off by the next
    rows["is_terminal"] &= rows["is_last"]
    rows |= {k: v.numpy() for k, v in columns_of(np.full(count, 1), np.arange(count)).items()}
    many.add_many(1, rows)
    for t in range(count):
        one.add({key: value[t : t + 1] for key, value in rows.items()}, [1])
    assert contents(one) == contents(many)
    for stream in (-1, 2):
        with pytest.raises(ValueError, match="not in"):
            many.add_many(stream, rows)


# Transitions


def walk(replay: Replay, lengths: list[tuple[int, bool]]) -> None:
    """Episodes of so many rows, the last of them terminal or not; the last episode goes on."""
    for number, (length, terminal) in enumerate(lengths):
        row = int(replay.counts[0]) + np.arange(length)
        image = np.broadcast_to((row % 251)[:, None, None, None], (length, 4, 4, 1))
        last = np.arange(length) == (length - 1 if number < len(lengths) - 1 else length)
        replay.add_many(0, {
            "image": image.astype(np.uint8),
            "a/b": np.stack([0 * row, row], -1).astype(np.float32),
            "action": np.stack([row, -row], -1).astype(np.float32),
            "reward": (row + 1).astype(np.float32),
            "is_first": np.arange(length) == 0,
            "is_last": last,
            "is_terminal": last & terminal,
        })  # fmt: skip


@pytest.mark.parametrize("n", [1, 3, 20])
@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_transitions_are_sums_by_hand(n: int, storage: str, tmp_path: Path) -> None:
    replay = Replay(SPEC, ReplayConfig(24, storage=storage), 1, directory=tmp_path)
    walk(replay, [(9, True), (5, True), (4, False), (1, False), (6, True), (4, False)])
    gamma = 0.9  # rows 5 ... 28 are left; 8 and 13 and 24 are terminal, 17 and 18 cut off
    drawn = replay.transitions(400, n, gamma)
    starts = drawn.index.start
    assert set(starts) == set(range(5, 28)) - {8, 13, 17, 18, 24}
    ends = np.array([next(e for e in (8, 13, 17, 24, 28) if e > t) for t in starts])
    after = np.minimum(starts + n, ends)
    for i, (t, then) in enumerate(zip(starts.tolist(), after.tolist(), strict=True)):
        expected = sum(gamma ** (r - t - 1) * (r + 1) for r in range(t + 1, then + 1))
        assert drawn.reward[i] == pytest.approx(expected, rel=1e-6)
        factor = 0.0 if then in (8, 13, 24) else gamma ** (then - t)
        assert drawn.discount[i] == pytest.approx(factor, rel=1e-6)
    assert np.array_equal(drawn.obs["a/b"][:, 1], starts)
    assert np.array_equal(drawn.next_obs["a/b"][:, 1], after)
    assert np.array_equal(drawn.next_obs["image"][:, 1, 2, 0], after)
    assert np.array_equal(drawn.action, np.stack([starts + 1, -starts - 1], -1))
    assert torch.equal(drawn.weight, torch.ones(400))
    moved = drawn.to(torch.device("meta"))
    assert moved.obs["image"].is_meta
    assert moved.index is drawn.index


def test_transitions_are_uniform_over_all_steps() -> None:
    replay = make(capacity=150, num_envs=5)
    for stream, steps in enumerate([120, 9, 3, 30, 0]):
        add(replay, steps, ids=[stream])
    drawn = [replay.transitions(500).index for _ in range(60)]
    starts = np.stack([np.concatenate([getattr(i, k) for i in drawn]) for k in ("stream", "start")])
    found, counts = np.unique(starts, axis=1, return_counts=True)
    assert not np.any(found[1] % 7 == 6)
    held = np.bincount(found[0], minlength=5)
    assert held.tolist() == [24, 7, 2, 25, 0]
    expected = 60 * 500 / 58
    chi = ((counts - expected) ** 2 / expected).sum()
    assert 57 - 5 * np.sqrt(2 * 57) < chi < 57 + 5 * np.sqrt(2 * 57)


def test_transitions_that_cannot_be_drawn() -> None:
    replay = make()
    with pytest.raises(ValueError, match="fullest stream holds 0"):
        replay.transitions(4)
    add(replay, 1)
    with pytest.raises(ValueError, match="fullest stream holds 1"):
        replay.transitions(4)
    add(replay, 5, episode=1)
    with pytest.raises(ValueError, match="one row long"):
        replay.transitions(4)
    add(replay, 1, episode=1000)
    with pytest.raises(ValueError, match="Cannot draw"):
        replay.transitions(0)
    with pytest.raises(ValueError, match="at least one step, not 0"):
        replay.transitions(1, 0)


def test_online_queue_hands_out_every_new_sequence_once_and_first() -> None:
    replay = make(capacity=400)
    add(replay, 17)
    first = replay.sample(4, 8).index
    pairs = list(zip(first.stream.tolist(), first.start.tolist(), strict=True))
    assert sorted(pairs) == [(0, 0), (0, 8), (1, 0), (1, 8)]
    add(replay, 6)
    assert set(replay.sample(80, 8).index.start.tolist()) == set(range(16))  # 16 is incomplete
    add(replay, 1)
    batch = replay.sample(5, 8)
    check(batch)
    assert batch.index.start[:2].tolist() == [16, 16]
    assert sorted(batch.index.stream[:2].tolist()) == [0, 1]
    add(replay, 12)
    replay.sample(5, 8, online=False)  # leaves the queue alone
    assert replay.sample(2, 4).index.start.tolist() == [24, 24]  # another length: row by row on
    assert replay.sample(2, 8).index.start.tolist() == [28, 28]


def test_online_queue_drops_what_is_overwritten_and_is_bounded() -> None:
    replay = make()
    add(replay, 41)  # rows 11 ... 40 are left
    assert sorted(replay.sample(6, 10).index.start.tolist()) == [11, 11, 21, 21, 31, 31]
    replay = make(capacity=2000)
    add(replay, 500)
    starts = replay.sample(80, 10).index.start
    assert sorted(starts[:32].tolist()) == sorted([*range(340, 500, 10)] * 2)


def test_an_interrupted_episode_is_marked_as_cut_off() -> None:
    replay = make()
    add(replay, 3)
    add(replay, 4, ids=[1], episode=1000)
    row = {
        "image": np.zeros((1, 4, 4, 1), np.uint8),
        **{"a/b": np.zeros((1, 2)), "action": np.zeros((1, 2)), "reward": np.zeros(1)},
        **{"is_last": [False], "is_terminal": [False], "is_first": [True]},
    }
    replay.add(row, [1])
    rows = replay.rows(1, 0, 8)
    assert rows["is_last"].tolist() == [False] * 6 + [True, False]
    assert not rows["is_terminal"].any()
    assert not replay.rows(0, 0, 3)["is_last"].any()


def test_episodes_and_rows() -> None:
    replay = make()
    add(replay, 40)  # rows 10 ... 39; episodes start at 7, 14, 21, 28, 35
    spans = [(10, 14), (14, 21), (21, 28), (28, 35), (35, 40)]
    assert replay.episodes() == [(n, *span) for n in range(2) for span in spans]
    assert replay.episodes(complete=True) == [(n, *s) for n in range(2) for s in spans[1:4]]
    rows = replay.rows(1, 28, 35)
    assert set(rows) == {*SPEC.obs, "action", "reward", "is_first", "is_last", "is_terminal"}
    assert rows["a/b"].tolist() == [[1, r] for r in range(28, 35)]
    assert make().episodes() == []
    with pytest.raises(ValueError, match="held"):
        replay.rows(0, 9, 12)


def test_same_seed_same_draws() -> None:
    a, b, c = make(seed=1, online=False), make(seed=1, online=False), make(seed=2, online=False)
    for replay in (a, b, c):
        add(replay, 30)
    state = np.random.get_state(legacy=False)
    assert same(a.sample(16, 5, context=COLUMNS), b.sample(16, 5, context=COLUMNS))
    assert not np.array_equal(a.sample(16, 5).index.start, c.sample(16, 5).index.start)
    assert str(np.random.get_state(legacy=False)) == str(state)


def test_capacity_by_steps_or_bytes() -> None:
    # 16 image + 8 vector + 8 action + 4 reward + 1 flags + 6 deter + 2 stoch + 8 row number
    replay = make(capacity=61)
    assert (replay.row_bytes, replay.capacity) == (53, 60)
    assert make(capacity_gb=53e-6).capacity == 1000
    add(replay, 10)
    most = f"{replay.disk_bytes() / 1e9:.3g}"
    assert replay.footprint() == (
        "replay: 60 steps x 0.053 KB = 3.18e-06 GB (memory; 1.06e-06 GB used now; saved, up to "
        f"{most} GB)"
    )


def test_config_is_structured() -> None:
    config = OmegaConf.merge(OmegaConf.structured(ReplayConfig), {"capacity": 1e3})
    assert OmegaConf.to_object(config) == ReplayConfig(capacity=1000.0)
    with pytest.raises(ConfigKeyError):
        OmegaConf.merge(config, {"capacty": 1})


def good() -> dict[str, Any]:
    flag = np.zeros(2, bool)
    return {
        "image": np.zeros((2, 4, 4, 1), np.uint8),
        "a/b": np.zeros((2, 2), np.float32),
        "action": np.zeros((2, 2), np.float32),
        "reward": np.zeros(2),
        **{"is_first": flag, "is_last": flag, "is_terminal": flag},
        **columns_of([0, 1], [0, 0]),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": np.zeros(2)}, "keys"),
        ({"stoch": None}, "keys"),
        ({"reward": np.zeros((2, 1))}, r"'reward' has shape \[2, 1\]; expected \[2\]"),
        ({"image": np.zeros((2, 4, 4, 1))}, "'image' is float64; expected uint8"),
        ({"is_first": np.zeros(2)}, "'is_first' is float64; expected bool"),
        ({"action": np.full((2, 2), np.nan)}, "'action' has values that are not finite"),
        ({"a/b": np.full((2, 2), np.inf)}, "not finite"),
        ({"a/b": np.full((2, 2), 1e300)}, "not finite"),  # infinite as a float32
        ({"reward": np.array([0, -1e39])}, "'reward' has values that are not finite"),
        ({"deter": torch.full((2, 3), 1e6)}, "'deter' has values that are not finite"),
        ({"deter": torch.full((2, 3), torch.nan)}, "not finite"),
        ({"deter": torch.full((2, 3), -torch.inf).half()}, "not finite"),
        ({"stoch": torch.zeros(2, 2)}, "'stoch' is float32; expected uint8"),
        ({"stoch": torch.full((2, 2), 5).byte()}, "'stoch' has values of 5; allowed: below 5"),
        ({"stoch": torch.zeros(2, 5).byte()}, r"'stoch' has shape \[2, 5\]; expected \[2, 2\]"),
        ({"is_terminal": np.ones(2, bool)}, "is_terminal needs is_last"),
    ],
)
def test_bad_rows(change: dict[str, Any], message: str) -> None:
    replay = make()
    replay.add(good())
    rows = {k: v for k, v in {**good(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        replay.add(rows)
    assert len(replay) == 2


def test_bad_settings_and_requests() -> None:
    bad: dict[str, dict[str, Any]] = {
        "Unknown storage": {"storage": "tape"},
        "needs a directory": {"storage": "disk"},
        "at least 2": {"capacity": 3},
        "storage=disk": {"capacity": 1e15},
    }
    for message, config in bad.items():
        with pytest.raises(ValueError, match=message):
            make(**config)
    spec = EnvSpec({"reward": ObsSpec("vector", (1,))}, SPEC.action)
    with pytest.raises(ValueError, match="reserved"):
        Replay(spec, ReplayConfig(capacity=10), 1)
    replay = make()
    with pytest.raises(ValueError, match="env_ids"):
        add(replay, 1, ids=[0, 0])
    add(replay, 4)
    assert replay.can_sample(4)
    assert not replay.can_sample(5)
    with pytest.raises(ValueError, match="fullest stream holds 4"):
        replay.sample(1, 5)
    with pytest.raises(ValueError, match="at least one row"):
        replay.sample(1, 0)
    values = columns_of(np.zeros((1, 3), int), np.zeros((1, 3), int))
    with pytest.raises(ValueError, match=r"'deter' has shape \[1, 3, 3\]; expected \[1, 2, 3\]"):
        replay.rewrite(RowIndex(np.array([0]), np.array([0]), 2), values)
    for columns in ({"image": Column((), "float32")}, {"reward": Column((), "float32")}):
        with pytest.raises(ValueError, match=r"Column keys .* are reserved"):
            Replay(SPEC, ReplayConfig(capacity=10), 2, columns)
    for dtype in ("f4", "object", "complex64"):
        with pytest.raises(ValueError, match="allowed are NumPy's names"):
            Replay(SPEC, ReplayConfig(capacity=10), 2, {"value": Column((), dtype)})
