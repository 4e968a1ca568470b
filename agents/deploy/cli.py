"""The commands behind scripts/deploy.py and scripts/export.py."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

import agents
from agents.deploy import sources
from agents.deploy.config import DeployConfig
from agents.deploy.decision import LATE
from agents.deploy.export.write import ExportOptions, export_agent
from agents.deploy.trial import Trial, World, alone, fallback_alone, guarded
from agents.planning.words import split_words
from worldmodel import config
from worldmodel.accel import devices
from worldmodel.config import ConfigError
from worldmodel.envs.config import EnvConfig, with_words
from worldmodel.envs.shifts import LEVELS, SHIFTS, shift_named
from worldmodel.folders import make_folder
from worldmodel.log import write_json
from worldmodel.ood import store

MANY = 0.1  # of the ticks without an answer in time: no accident


@dataclass
class DeployCommand:
    """run: a run folder, or an export folder. env: settings of the environment that are others than
    in training: env.time_limit=300, or env.id=...; what it observes and takes must stay the same.
    shift: what changes, by name (worldmodel/envs/shifts.py), or your own (module:Class,
    file.py:Class); empty: nothing. strength: mild,
    middle, strong, or a number in the shift's unit. onset: tick of every episode at which it
    begins. episodes, seed: of each way to play them. guard: with the detector. pace: keep to the
    period, as a robot does; false: one tick after the other. graph, expected: of an
    export, and its digest. planner=NAME and planner.SETTING=... (--help planner=NAME lists them):
    plan each action in the run's world, until deploy.soft_ms unless planner.bounds.deadline_ms is
    given. to: folder for log, summary and requests to train; empty: <run>/deployment, and in it a
    folder of the planner's name. deploy: everything about the loop itself.
    """

    run: str = MISSING
    env: dict[str, Any] = field(default_factory=dict)
    shift: str = ""
    strength: str = "middle"
    onset: int = 20
    episodes: int = 5
    seed: int = 0
    guard: bool = True
    pace: bool = True
    graph: str | None = None
    expected: str | None = None
    to: str = ""
    deploy: DeployConfig = field(default_factory=DeployConfig)

    def __post_init__(self) -> None:
        if self.run != MISSING:
            config.check_ranges(self, {"episodes": (1, 1e6), "onset": (0, 1e9)})

    def world(self, env: EnvConfig) -> World:
        """An environment, and what happens to it."""
        if not self.shift:
            self._check_no_shift()
            return World(env)
        shift = shift_named(self.shift)
        if self.strength in LEVELS:
            return World(env, self.shift, shift.strength(self.strength), self.onset)
        try:
            number = float(self.strength)
        except ValueError:
            raise ConfigError(
                f"strength is '{self.strength}'; allowed: {', '.join(LEVELS)}, or a number "
                f"({shift.unit})."
            ) from None
        return World(env, self.shift, shift.checked(number), self.onset)

    def _check_no_shift(self) -> None:
        """ConfigError for settings of a shift where there is none."""
        of_shift = {"strength": self.strength, "onset": self.onset}
        given = [f"{k}={v}" for k, v in of_shift.items() if v != getattr(DeployCommand, k)]
        if given:
            raise ConfigError(
                f"{' '.join(given)} is of a shift, and none is given. Leave it out, or give "
                f"shift=NAME; known: {', '.join(SHIFTS)}."
            )

    def folder(self, planner: Any) -> Path:
        """Where log, summary and requests go: nobody's replace those of the policy itself. Never
        into an export, which is sealed."""
        beside = f"{self.run.rstrip('/')}-deployment"
        own = beside if sources.is_export(self.run) else str(Path(self.run) / "deployment")
        return Path(self.to or Path(own, *([planner.name] if planner else [])))

    def loop(self, folder: Path) -> DeployConfig:
        """Settings of the loop, which writes to this folder where they name no other place.
        ConfigError where one of the places cannot be written to."""
        log, retrain = self.deploy.log, self.deploy.retrain
        make_folder(folder, "to")
        if log:
            make_folder(Path(log).parent, "deploy.log")
        if retrain.folder:
            make_folder(Path(retrain.folder), "deploy.retrain.folder")
        return replace(
            self.deploy,
            log=log or str(folder / "deploy.jsonl"),
            retrain=replace(retrain, folder=retrain.folder or str(folder / "retrain")),
        )


def deploy_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Play episodes with a deployed agent, and print what came of them; an exit code."""

    def deploy() -> int:
        planner, words = split_words(arguments)
        asked = config.from_cli(DeployCommand, words, planner=planner)
        world = asked.world(with_words(sources.env_of(asked.run).judged, words))
        return _deploy(asked, world, planner, say)

    return config.guarded(deploy, say)


def _deploy(asked: DeployCommand, world: World, planner: Any, say: Callable[[str], None]) -> int:
    devices.set_threads(1)
    folder = asked.folder(planner)
    settings = asked.loop(folder)
    planner = planner and sources.on_time(planner, settings)
    if asked.guard and not _has_detector(asked.run):
        fit = f"Fit one: scripts/fit_detector.py run={asked.run}"
        if sources.is_export(asked.run):
            fit = "Fit one on its run (scripts/fit_detector.py run=RUN), and export that again."
        say(f"'{asked.run}' has no detector, so nothing is ever unknown. {fit}")
    runtime = sources.open_runtime(
        asked.run, settings, guard=asked.guard, graph=asked.graph, expected=asked.expected,
        on_retrain=lambda request: say(f"please train: {request.kind} error {request.error:.3f} "
                                       f"over {request.window} ticks; {request.folder}"),
        planner=planner,
    )  # fmt: skip
    with runtime:
        runtime.start()
        trial = guarded(runtime, world, asked.episodes, asked.seed, asked.pace, say)
        table = runtime.tally.table()
    summary = runtime.summary()
    source = sources.Source(asked.run, guard=False, graph=asked.graph, expected=asked.expected)
    engine, spec = source.engine()
    others = {}
    for name, play in {
        "policy alone": lambda: alone(engine, spec, world, asked.episodes, asked.seed),
        "fallback alone": lambda: fallback_alone(
            settings.fallback, spec, world, asked.episodes, asked.seed
        ),
    }.items():
        try:
            others[name] = play()
        except Exception as error:  # of anybody's environment; what was found before is not lost
            say(f"{name}: could not be played ({type(error).__name__}: {config.first_line(error)})")
    for line in _report(asked, world, trial, others, summary, table):
        say(line)
    if too_slow := slowness(asked, summary, planner, getattr(engine, "agent", None)):
        say(too_slow)
    trials = {"guarded": trial, **others}
    results = {name: asdict(one) | {"mean": one.mean} for name, one in trials.items()}
    about = {"world": asdict(world), "deploy": config.keys_of(settings)}
    about |= {"planner": asdict(planner)} if planner else {}
    write_json(folder / "summary.json", {**summary, **about, "trials": results})
    say(f"log, summary and requests to train: {folder}")
    return 0


def _report(
    asked: DeployCommand,
    world: World,
    trial: Trial,
    others: dict[str, Trial],
    summary: dict[str, Any],
    table: str,
) -> list[str]:
    """What a person wants to know."""
    shift = f", {world.name} {world.strength:g} from tick {world.onset}" if world.name else ""
    lines = [f"{world.env.id}, {asked.episodes} episodes{shift}", table]
    rows = []
    for name, one in {"guarded": trial, **others}.items():
        cut = f" ({one.cut_off} cut off; env.longest_episode)" if one.cut_off else ""
        rows.append((name, f"{one.mean:.1f}{cut}"))
    if world.name:
        found = sorted(trial.detected)
        delays = (
            f"; median delay {found[len(found) // 2]} ticks, longest {found[-1]}" if found else ""
        )
        rows.append(("shifts noticed", f"{len(found)} of {len(trial.delays)}{delays}"))
        rows.append(("alarms before", f"{trial.alarms} of {asked.episodes} episodes"))
    else:
        rows.append(("false alarms", f"{trial.alarms} of {asked.episodes} episodes"))
    rows.append(("requests to train", f"{summary['retrain_requests']}"))
    names = {name: f"return, {name}" if name in {"guarded", *others} else name for name, _ in rows}
    width = max(map(len, names.values()))
    return [*lines, *(f"  {names[name]:<{width}}  {text}" for name, text in rows)]


def slowness(
    asked: DeployCommand,
    summary: Mapping[str, Any],
    planner: Any = None,
    agent: agents.Agent | None = None,
) -> str:
    """A warning where the agent is too slow for its cycle, or "". planner: settings of the one that
    the command names. agent: of a run folder; None of an export."""
    late = max(summary["reasons"].get(LATE, 0), summary["missed"])
    if late <= MANY * summary["ticks"]:
        return ""
    advice = "Give it a longer period."
    if planner:
        advice = "Give it a longer period, plan with fewer candidates, or in a smaller world."
    elif agent is not None and agent.tick() is not None:
        advice = f"An export answers sooner (scripts/export.py run={asked.run}); or give it longer."
    elif agent is not None and agent.planner is not None:
        fewer = "simulations" if agent.planner.config.name == "mcts" else "candidates"
        advice = (
            f"Plan with planner={agent.planner.config.name}, which ends at deploy.soft_ms (or "
            f"planner.bounds.deadline_ms), and with fewer planner.{fewer}; or give it a longer "
            "period."
        )
    return (
        f"warning: {late:,} of {summary['ticks']:,} ticks had no answer in time "
        f"(deploy.hard_ms={asked.deploy.hard_ms:g}, deploy.period_ms={asked.deploy.period_ms:g}). "
        f"{advice}"
    )


def _has_detector(run: str) -> bool:
    if sources.is_export(run):
        return sources.ExportEngine(run).manifest["detector"] is not None
    return store.exists(run)


@dataclass
class ExportCommand(ExportOptions):
    """run: a run folder. to: the export's folder; empty: <run>/export. detector: auto (with the
    run's, where there is one), or no. The rest as in ExportOptions."""

    run: str = MISSING
    to: str = ""
    detector: str = "auto"


def export_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Export a run's agent; an exit code."""
    return config.guarded(lambda: _export(arguments, say), say)


def _export(arguments: Sequence[str], say: Callable[[str], None]) -> int:
    planner, words = split_words(arguments)
    if planner is not None:
        raise ConfigError(
            "A plan is a search, which no graph holds. Deploy the run itself: scripts/deploy.py "
            f"run=RUN planner={planner.name}."
        )
    asked = config.from_cli(ExportCommand, words)
    if asked.detector not in ("auto", "no"):
        raise ConfigError(config.unknown("detector", asked.detector, ("auto", "no")))
    devices.set_threads(1)
    policy = sources.load_policy(asked.run)
    folder = Path(asked.to or Path(asked.run) / "export")
    make_folder(folder.parent, "to")
    detector = sources.load_detector(asked.run, policy) if asked.detector == "auto" else None
    say("with the run's detector" if detector is not None else "without a detector")
    try:
        replay = agents.load_replay(asked.run)
    except ConfigError:
        replay = None  # the environment is played instead
    about = {
        "run": Path(asked.run).resolve().name,
        "reward_range": sources.reward_range(asked.run),
        "calibration": None if detector is None else detector.calibration,
    }
    made = export_agent(policy, folder, asked, detector, replay, about, say)
    say(f"{folder}: graphs {', '.join(made.manifest['graphs'])}; sha256 {made.digest}")
    say(f"without our code: python {shlex.quote(str(folder / 'run_export.py'))}")
    return 0
