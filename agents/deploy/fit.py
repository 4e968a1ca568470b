"""A detector for a trained run: what it recorded, fresh episodes of its policy, and thresholds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from omegaconf import MISSING

import agents
from agents.base import Policy, check_mode, random_actions
from agents.deploy import earnings
from agents.deploy.config import FallbackConfig
from agents.run.collect import checked
from agents.run.config import CONFIG
from worldmodel import config, progress, seeding, tree
from worldmodel.accel import devices
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import make_env
from worldmodel.envs.pictures import Scene, with_object
from worldmodel.envs.shifts import SHIFTS
from worldmodel.folders import make_folder
from worldmodel.ood import store
from worldmodel.ood.api import Track
from worldmodel.ood.config import DetectorConfig
from worldmodel.ood.conformal import episodes_needed, rank
from worldmodel.ood.detector import Detector
from worldmodel.ood.heat import draw_heat_maps
from worldmodel.ood.pictures import WorstPatch

TUNING = 1 / 3  # the share of the fresh episodes that sets the units; the rest sets the thresholds
LEAST_TUNING = 10  # episodes
TOGETHER = 10  # environments that play at the same time

Env = gymnasium.Env[Any, Any]
Said = Callable[[str], None]


@dataclass
class FitConfig:
    """run: a trained run's folder. false_alarm_rate: of the episodes in which nothing is strange,
    the share that may raise an alarm. episodes: played now with the run's policy, 0: as many as
    the rate needs, and half of that to tune. recorded: episodes of the replay to
    learn from, the newest; 0: all. mode: how the policy acts, "mode" or "sample".
    fallback_episodes: played by each fallback, to see what it earns. fallback: one of
    your own, to be measured beside those of the house. detector: what it is made of."""

    run: str = MISSING
    false_alarm_rate: float = 0.01
    episodes: int = 0
    recorded: int = 0
    mode: str = "mode"
    fallback_episodes: int = 20
    fallback: FallbackConfig = field(default_factory=FallbackConfig)
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    detector: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self) -> None:
        config.check_ranges(self, {
            "episodes": (0, 10_000_000), "recorded": (0, 10_000_000),
            "fallback_episodes": (1, 10_000_000), "seed": (0, 2**32 - 1),
        })  # fmt: skip
        check_mode(self.mode)
        self.needed  # noqa: B018 - ConfigError for an impossible rate

    @property
    def needed(self) -> int:
        """The fewest episodes that can set the threshold."""
        return episodes_needed(self.false_alarm_rate, self.detector.confidence)

    @property
    def shares(self) -> tuple[int, int]:
        """How many fresh episodes tune, and how many set the thresholds."""
        if not self.episodes:
            tuning = max(LEAST_TUNING, round(self.needed * TUNING / (1 - TUNING)))
            return tuning, self.needed
        tuning = max(2, round(TUNING * self.episodes))
        rank(self.episodes - tuning, self.false_alarm_rate, self.detector.confidence)
        return tuning, self.episodes - tuning


def fit_run(settings: FitConfig, say: Said) -> Detector:
    """A detector fitted on a run and calibrated on fresh episodes of its policy; not yet stored.

    Raises ConfigError where the run has no replay, or an empty one, or where episodes are too few
    for the rate; it says how many are needed.
    """
    tuning, calibrating = settings.shares
    policy = agents.load(settings.run, settings.device)
    detector = Detector(policy.spec, settings.detector, policy.model, policy.device, say)
    known = recorded_tracks(settings.run, settings.recorded)
    say(f"{len(known)} recorded episodes to learn from; playing {tuning + calibrating} fresh ones")
    start = time.monotonic()
    seed = seeding.spawn(settings.seed, "detector")
    fresh = play(policy, tuning + calibrating, seed, settings.mode)
    say(f"played in {time.monotonic() - start:.0f} s")
    detector.fit(known, fresh[:tuning])
    detector.calibrate(fresh[tuning:], settings.false_alarm_rate)
    if earnings.comparable(policy.model):
        start = time.monotonic()
        measured = earnings.measure(
            policy, fresh, settings.fallback, settings.fallback_episodes, seed
        )
        detector.calibration[earnings.KEY] = asdict(measured)
        say(f"{measured}; measured in {time.monotonic() - start:.0f} s")
        if measured.no_better_than:
            say(
                f"Attention: {', '.join(measured.no_better_than)} alone earns no less than this "
                "policy on an ordinary day. Train it longer before it is deployed."
            )
    return detector


def recorded_tracks(run: str | Path, newest: int = 0) -> list[Track]:
    """Episodes of a run's replay, the newest or (0) all, without the states of its agent.

    Raises ConfigError where there is none.
    """
    replay = agents.load_replay(run)
    places = [place for place in replay.episodes() if place[2] - place[1] > 1]
    if not places:
        raise ConfigError(
            f"The replay of '{run}' is empty, so there is nothing known to learn. Train the run "
            "first, or name one whose replay was kept."
        )
    tracks = []
    for stream, start, stop in progress.each(places[-newest:], "reading recorded episodes"):
        rows = replay.rows(stream, start, stop)
        tracks.append(Track({key: rows[key] for key in replay.spec.obs}, rows["action"]))
    return tracks


def play(
    policy: Policy,
    episodes: int,
    seed: int,
    mode: str = "mode",
    wrap: Callable[[Env, int], Env] = lambda env, seed: env,
    jolts: int = 0,
) -> list[Track]:
    """Complete episodes of a policy in its own environment, with the states of its world.

    wrap: what to put around each environment, given a seed for it. jolts: so many ticks at the
    start of each episode take random actions. Draws no global random numbers. Raises RunError where
    the environment fails.
    """
    count = min(TOGETHER, episodes)
    seeds = [seeding.spawn(seed, f"environment {index}") for index in range(count)]
    made = [make_env(policy.env, s, whole=True, spec=policy.spec) for s in seeds]
    envs = [wrap(e, seeding.spawn(s, "around it")) for e, s in zip(made, seeds, strict=True)]
    # Each environment plays its own share: else short episodes would crowd out long ones.
    shares = [episodes // count + (index < episodes % count) for index in range(count)]
    player = _Player(policy, envs, mode, jolts, np.random.default_rng(seed))
    try:
        drawn = seeding.Stream(seeding.spawn(seed, "agent"), policy.device)
        with drawn, progress.step("playing episodes", episodes) as playing:
            while any(len(done) < n for done, n in zip(player.done, shares, strict=True)):
                player.tick()
                playing.done, playing.inside = player.played(shares), f"step {player.longest:,}"
    except ValueError as error:
        raise RunError(f"The environment failed: {error}") from error
    finally:
        for env in envs:
            env.close()
    return [track for done, n in zip(player.done, shares, strict=True) for track in done[:n]]


class _Player:
    """Environments that step together; an ended one is reset at once."""

    def __init__(
        self, policy: Policy, envs: list[Env], mode: str, jolts: int, rng: np.random.Generator
    ) -> None:
        self.policy, self.envs, self.mode = policy, envs, mode
        self.jolts, self._rng = jolts, rng
        self.done: list[list[Track]] = [[] for _ in envs]
        self._rows: list[list[tuple[Any, ...]]] = [[] for _ in envs]
        self._obs: list[Mapping[str, np.ndarray]] = [env.reset()[0] for env in envs]
        self._action = np.zeros((len(envs), policy.spec.action.size), np.float32)
        self._first = np.ones(len(envs), bool)
        self._over = np.zeros(len(envs), bool)
        self._reward = np.zeros(len(envs), np.float32)
        self._state: Any = None

    def played(self, shares: Sequence[int]) -> float:
        """How many episodes of the shares are played, those under way as far as they are as long
        as the others were."""
        ended = [len(track) for done in self.done for track in done]
        usual = sum(ended) / len(ended) if ended else float("inf")
        whole = sum(min(len(done), n) for done, n in zip(self.done, shares, strict=True))
        wanted = (
            rows
            for rows, done, n in zip(self._rows, self.done, shares, strict=True)
            if len(done) < n
        )
        return whole + sum(min(0.99, len(rows) / usual) for rows in wanted)

    @property
    def longest(self) -> int:
        """Steps of the longest episode under way."""
        return max(map(len, self._rows))

    def tick(self) -> None:
        """Act on all observations at hand, record them, and take the actions."""
        spec = self.policy.spec
        obs = {key: np.stack([one[key] for one in self._obs]) for key in spec.seen}
        agent = self.policy.agent
        inputs = {**obs, "is_first": self._first}
        acted = agent.act(inputs, self._state, self.mode)
        action, self._state, _ = checked(acted, spec, len(self.envs), agent, self.longest)
        early = np.array([len(rows) < self.jolts for rows in self._rows])
        if early.any():
            drawn = random_actions(spec, obs, len(self.envs), self._rng)
            action = np.where(early[:, None], drawn, action)
            self._state = agent.replace_action(self._state, action)
        action = spec.action.clip(action)
        states = tree.to(agent.world_state(self._state), "cpu")
        native = spec.action.decode(action)
        for i, env in enumerate(self.envs):
            seen = {key: value[i] for key, value in obs.items()}
            row = (seen, self._action[i].copy(), tree.index(states, i), self._reward[i])
            self._rows[i].append(row)
            if self._over[i]:
                self.done[i].append(_track(self._rows[i]))
                self._rows[i] = []
                self._obs[i], self._action[i], self._over[i] = env.reset()[0], 0, False
                self._first[i], self._reward[i] = True, 0.0
                continue
            self._obs[i], self._reward[i], terminated, truncated, _ = env.step(native[i])
            self._action[i], self._first[i] = action[i], False
            self._over[i] = terminated or truncated


def _track(rows: list[tuple[Any, ...]]) -> Track:
    obs, action, state, reward = zip(*rows, strict=True)
    stacked = None if state[0] is None else tree.stack(state)
    return Track(tree.stack(obs), np.stack(action), stacked, np.array(reward, np.float32))


def table(detector: Detector) -> str:
    """The columns of a calibrated detector, a line each."""
    scorer = detector.scorer
    rows = [
        (name, f"{float(limit):.2f}", "yes" if chosen else "")
        for name, limit, chosen in zip(scorer.names, scorer.limit, scorer.chosen, strict=True)
    ]
    head = ("part", "threshold", "decides")
    width = max(len(row[0]) for row in [head, *rows])
    lines = [f"{name:<{width}}  {limit:>9}  {used}".rstrip() for name, limit, used in [head, *rows]]
    about = detector.calibration
    lines.append(
        f"all together: {float(scorer.final):.2f} times as far as an ordinary episode goes beyond "
        f"another; {about['episodes']} held-out episodes, at most {about['false_alarm_rate']:g} "
        f"false alarms per episode"
        + (f" with {about['confidence']:.0%} confidence" if about["confidence"] else "")
    )
    return "\n".join(lines)


def fit_detector(settings: FitConfig, say: Said) -> Path:
    """Fit, calibrate and store the detector of a run; returns its folder."""
    devices.set_threads(settings.threads)
    config.read(Path(settings.run) / CONFIG)  # ConfigError where it is no run
    make_folder(Path(settings.run), "run")
    detector = fit_run(settings, say)
    folder = store.save(
        settings.run, detector, pictures(detector, settings), {"mode": settings.mode}
    )
    say(table(detector))
    say(f"detector: {folder}")
    return folder


def pictures(detector: Detector, settings: FitConfig) -> Callable[[Path], None]:
    """Draws, into a folder, where a known picture is strange, and the same one with an object."""

    def draw(folder: Path) -> None:
        scorer = detector.scorer
        if WorstPatch.name not in scorer.names:
            return
        last = recorded_tracks(settings.run, newest=1)[0]
        rng = np.random.default_rng(settings.seed)
        known = {key: value[len(last) // 2] for key, value in last.obs.items()}
        changed = dict(known)
        for key in scorer.looker.images:
            scene = Scene((0.2, 0.8), np.array([0.9, 0.1, 0.9]), known[key], rng)
            changed[key] = with_object(known[key], SHIFTS["object"].strength("middle"), scene)
        draw_heat_maps(folder / "heat.png", detector, [("known", known), ("object", changed)])

    return draw


def fit_detector_command(say: Said, arguments: Sequence[str]) -> int:
    """`scripts/fit_detector.py`; the process's exit code."""

    def work() -> int:
        fit_detector(config.from_cli(FitConfig, arguments), say)
        return 0

    return config.guarded(work, say)
