"""Shifts change what they say, from the tick on that they say, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from scripts.studies import unseen
from worldmodel.envs import EnvConfig, EnvError, make_env
from worldmodel.envs.pictures import Scene, brighter, covered, moved, noisy, simpler
from worldmodel.envs.shifts import LEVELS, SHIFTS, Change, Shifted, shift_named

PENDULUM = EnvConfig("Pendulum-v1", image_size=[32, 32], action_repeat=1)
FORCES = [0.7, -0.4, 0.9, -0.8, 0.3, 0.7, -0.6, 0.2]
VISIBLE = [name for name, shift in SHIFTS.items() if shift.kind == "visible"]


def episode(name: str | None, onset: int = 3, steps: int = 8, **how: Any) -> list[np.ndarray]:
    """The pictures of an episode under fixed actions."""
    env: Any = make_env(PENDULUM, 0)
    if name is not None:
        env = Shifted(env, name, onset=onset, **how)
    pictures = [env.reset()[0]["image"]]
    pictures += [env.step(np.array([force], np.float32))[0]["image"] for force in FORCES[:steps]]
    env.close()
    return pictures


@pytest.fixture(scope="module")
def usual() -> list[np.ndarray]:
    return episode(None)


def scene(**changes: Any) -> Scene:
    given = {
        "place": (0.2, 0.8),
        "colour": np.array([1.0, 0.0, 0.0]),
        "usual": np.full((32, 32, 3), 255, np.uint8),
        "rng": np.random.default_rng(0),
    }
    return Scene(**(given | changes))


def test_there_are_more_than_ten_with_three_rising_strengths() -> None:
    assert len(SHIFTS) >= 14
    for shift in SHIFTS.values():
        assert len(set(shift.strengths)) == 3
        assert [shift.strength(level) for level in LEVELS] == list(shift.strengths)


@pytest.mark.parametrize("name", VISIBLE)
def test_a_visible_shift_begins_at_its_onset(name: str, usual: list[np.ndarray]) -> None:
    seen = episode(name)
    for before, after in zip(usual[:3], seen[:3], strict=True):
        np.testing.assert_array_equal(before, after)
    for before, after in zip(usual[3:], seen[3:], strict=True):
        assert after.shape == before.shape
        assert after.dtype == np.uint8
        assert (before != after).any()


@pytest.mark.parametrize("name", VISIBLE)
def test_a_stronger_visible_shift_changes_more(name: str, usual: list[np.ndarray]) -> None:
    picture = usual[5]
    function = SHIFTS[name].picture
    assert function is not None
    away = []
    for strength in SHIFTS[name].strengths:
        changed = function(picture, strength, scene(usual=usual[0])).astype(int)
        away.append(np.abs(changed - picture).sum())
    assert 0 < away[0] < away[2]
    assert away[0] <= away[1] <= away[2]


def test_pictures_by_hand() -> None:
    grey = np.full((32, 32, 3), 100, np.uint8)
    assert (brighter(grey, 0.2, scene()) == 151).all()
    assert (brighter(grey, 1.0, scene()) == 255).all()  # cut off, not wrapped round
    assert (covered(grey, 0.25, scene()) == 128).all(-1).sum() == 64
    assert abs(noisy(grey, 0.1, scene()).std() - 25.5) < 2
    assert (simpler(grey, 1.0, scene()) == 0).all()
    edge = grey.copy()
    edge[:, 16:] = 200
    assert (moved(edge, 2 / 32, scene())[10, :, 0] == 200).sum() == 18  # moved left by two


def test_a_frozen_camera_shows_the_same_picture_until_it_moves_on(usual: list[np.ndarray]) -> None:
    seen = episode("frozen", strength=3)
    for shown, tick in zip(seen, [0, 1, 2, 3, 3, 3, 6, 6, 6], strict=True):
        np.testing.assert_array_equal(shown, usual[tick])


def test_a_delayed_camera_shows_what_was(usual: list[np.ndarray]) -> None:
    seen = episode("delay", strength=2)
    for shown, tick in zip(seen, [0, 1, 2, 1, 2, 3, 4, 5, 6], strict=True):
        np.testing.assert_array_equal(shown, usual[tick])


@pytest.mark.parametrize("name", ["mass", "gravity", "gain", "sign"])
def test_changed_dynamics_begin_at_the_onset(name: str, usual: list[np.ndarray]) -> None:
    seen = episode(name, strength=SHIFTS[name].strengths[2], steps=8)
    for before, after in zip(usual[:3], seen[:3], strict=True):
        np.testing.assert_array_equal(before, after)
    assert (seen[8] != usual[8]).any()


def test_physics_are_as_before_in_the_next_episode() -> None:
    env = Shifted(make_env(PENDULUM, 0), "gravity", 2.0, onset=1)
    env.reset()
    assert env.unwrapped.g == 10.0  # type: ignore[attr-defined]
    env.step(np.zeros(1, np.float32))
    assert env.unwrapped.g == 20.0  # type: ignore[attr-defined]
    env.reset()
    assert env.unwrapped.g == 10.0  # type: ignore[attr-defined]
    env.close()


def test_cartpole_keeps_its_products_in_step() -> None:
    env = Shifted(make_env(EnvConfig("CartPole-v1", image_size=[32, 32]), 0), "mass", 2.0)
    env.reset()
    env.step(0)
    inner: Any = env.unwrapped
    assert inner.total_mass == pytest.approx(inner.masspole + inner.masscart)
    assert inner.polemass_length == pytest.approx(inner.masspole * inner.length)
    env.reset()
    assert inner.masspole == pytest.approx(0.1)
    assert inner.total_mass == pytest.approx(1.1)
    env.close()


def test_the_same_seed_gives_the_same_episode() -> None:
    for one, two in zip(episode("noise", seed=4), episode("noise", seed=4), strict=True):
        np.testing.assert_array_equal(one, two)
    assert any((a != b).any() for a, b in zip(episode("noise"), episode("noise", seed=5)))  # noqa: B905


class Wind(Change):
    strengths = (0.1, 0.2, 0.3)

    def action(self, action: Any) -> Any:
        return np.asarray(action) + np.float32(self.strength)


class Nameless(Change):
    pass


def test_a_shift_of_ones_own_is_named_by_its_class(usual: list[np.ndarray]) -> None:
    seen = episode(f"{__name__}:Wind", onset=4)
    for before, after in zip(usual[:4], seen[:4], strict=True):
        np.testing.assert_array_equal(before, after)
    assert (seen[8] != usual[8]).any()
    by_hand = make_env(PENDULUM, 0)
    by_hand.reset()
    for tick in range(8):
        obs = by_hand.step(np.array([FORCES[tick] + (0.2 if tick >= 3 else 0)], np.float32))[0]
    np.testing.assert_array_equal(seen[8], obs["image"])
    by_hand.close()
    for name, why in (
        (f"{__name__}:Nameless", "three numbers as strengths"),
        (f"{__name__}:episode", "derive it from"),
        ("nowhere_at_all:Wind", "There is no module"),
        ("wind", "module:Class or file.py:Class"),
    ):
        with pytest.raises(EnvError, match=why):
            shift_named(name)


@pytest.mark.parametrize("name", unseen.NAMES)
def test_the_unseen_shifts_begin_at_their_onset(name: str, usual: list[np.ndarray]) -> None:
    seen = episode(name, strength=shift_named(name).strengths[2], steps=8)
    for before, after in zip(usual[:3], seen[:3], strict=True):
        np.testing.assert_array_equal(before, after)
    assert any((a != b).any() for a, b in zip(usual[3:], seen[3:], strict=True))


@pytest.mark.parametrize("name", SHIFTS)
def test_a_strength_without_a_meaning_is_refused_with_the_range(name: str) -> None:
    shift = SHIFTS[name]
    low, high = shift.allowed
    assert all(low <= one <= high for one in shift.strengths)
    env = make_env(PENDULUM, 0)
    for wrong in (float("nan"), float("inf"), low - 0.1, 2 * high, -2000.0):
        with pytest.raises(EnvError, match=re.escape(f"'{name}' allows {low:g} to {high:g} ")):
            Shifted(env, name, wrong)
    env.close()
    if shift.kind != "timing":
        for edge in shift.allowed:
            episode(name, strength=edge, steps=6)


def test_a_shift_of_ones_own_takes_any_finite_strength_or_those_it_allows() -> None:
    own = shift_named(f"{__name__}:Wind")
    assert own.checked(-3e6) == -3e6
    with pytest.raises(EnvError, match="allows any finite number"):
        own.checked(float("nan"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Wind, "allowed", (0, 1))
        with pytest.raises(EnvError, match=r"strength is 3; .* allows 0 to 1\."):
            shift_named(f"{__name__}:Wind").checked(3.0)


def test_a_square_as_high_as_a_tall_picture_covers_it() -> None:
    tall = np.zeros((32, 16, 3), np.uint8)
    assert (covered(tall, 1.0, scene()) > 0).all()


def test_what_cannot_be_shown_is_said() -> None:
    with pytest.raises(EnvError, match="Did you mean 'brightness'"):
        shift_named("brigtness")
    blind = make_env(EnvConfig("Pendulum-v1", pixels=False), 0)
    with pytest.raises(EnvError, match="changes pictures"):
        Shifted(blind, "blur")
    blind.close()
    cart = make_env(EnvConfig("CartPole-v1", image_size=[32, 32]), 0)
    with pytest.raises(EnvError, match="continuous actions"):
        Shifted(cart, "gain")
    cart.close()
