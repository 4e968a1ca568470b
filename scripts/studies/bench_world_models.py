"""`what=world_models`: what World Models costs, and what its dreams are worth.

speed: a generation, 64 candidates x 16 dreams of 100 steps, small and published.
estimate: how long the published CarRacing would take here, from the rates of its phases.
temperature: in the world of `run`, for every tau and seed: C evolved anew in dreams of that
temperature, what it earns in them and what in the real environment. parts: C that sees z alone
beside C that sees z and h, in dreams and in reality over the generations. With to=FOLDER both
leave a CSV and a picture there.
film: the dream that the run's own C was evolved in, as GIF and as a strip.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import agents
from agents.base import Policy
from agents.run.evaluate import evaluate
from agents.world_models import WorldModels, WorldModelsConfig
from agents.world_models.agent import CODES, STARTS
from agents.world_models.controller import Search, dream
from agents.world_models.memory import first_codes
from scripts.studies.bench import check_known
from scripts.studies.bench_timing import rounded
from worldmodel import plots, progress
from worldmodel.accel.devices import set_threads
from worldmodel.config import ConfigError, check_ranges
from worldmodel.log import enlarged, gif, write_picture
from worldmodel.models.mdnrnn import MDNRNNConfig, VMState
from worldmodel.models.vae import VAEConfig
from worldmodel.types import ActionSpec, Batch, EnvSpec, ObsSpec

TASKS = ("speed", "estimate", "temperature", "parts", "film")
SMALL = WorldModelsConfig(
    vae=VAEConfig(latent=8, depths=[8, 16, 32, 32]), rnn=MDNRNNConfig(units=48, mixtures=3)
)
PUBLISHED = WorldModelsConfig(
    vae=VAEConfig(latent=32, published=True), rnn=MDNRNNConfig(), vae_batch=100,
    batch_size=100, batch_length=1000,
)  # fmt: skip
FRAMES, VAE_UPDATES, RNN_UPDATES, GENERATIONS = 10_000_000, 1_000_000, 4_000, 1_800


@dataclass
class Settings:
    """run: whose V and M; for temperature and parts. taus, seeds, generations, population, trials:
    of the searches, which are else as the run's. episodes: of each evaluation, dreamt and real;
    every: generations between the real ones of parts, which have a fifth of them.
    episode_steps: of a real episode of CarRacing, for the estimate. threads: inside operations.
    to: a folder for pictures."""

    tasks: list[str] = field(default_factory=lambda: ["speed"])
    run: str = ""
    taus: list[float] = field(default_factory=lambda: [0.1, 0.5, 1.0, 1.15, 1.3])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    generations: int = 60
    population: int = 32
    trials: int = 8
    episodes: int = 100
    every: int = 10
    episode_steps: int = 1000
    env_ms: float = 5.0  # of one step of CarRacing
    threads: int = 0
    to: str = ""

    def __post_init__(self) -> None:
        check_known("task", self.tasks, TASKS)
        many = (1, 1 << 20)
        check_ranges(self, {
            "taus": (0, 100), "seeds": (0, 1 << 31), "generations": many, "population": (4, 4096),
            "trials": many, "episodes": many, "every": many, "episode_steps": many,
            "env_ms": (0, 1e6), "threads": (0, 1024),
        })  # fmt: skip
        if not self.run and {"temperature", "parts", "film"} & set(self.tasks):
            raise ConfigError(
                "temperature, parts and film need a run of agent=world_models: run=..."
            )
        if not self.to and "film" in self.tasks:
            raise ConfigError("Say where the film goes: to=FOLDER.")


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """The figures, one by one."""
    set_threads(settings.threads)
    tasks = {
        "speed": _speed, "estimate": _estimate, "temperature": _temperature, "parts": _parts,
        "film": _film,
    }  # fmt: skip
    for name in settings.tasks:
        yield from tasks[name](settings)


def _agent(config: WorldModelsConfig, side: int) -> WorldModels:
    spec = EnvSpec({"image": ObsSpec("image", (side, side, 3))}, ActionSpec("continuous", (3,)))
    return WorldModels(spec, config, torch.device("cpu"))


def _seconds(work: Callable[[], Any], times: int = 3) -> float:
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def _speed(settings: Settings) -> Iterator[dict[str, Any]]:
    """Dreams that nothing ends, so that all steps are taken."""
    for name, config, side in (("small", SMALL, 32), ("published", PUBLISHED, 64)):
        agent = _agent(replace(config, rnn=replace(config.rnn, end=False)), side)
        weights = torch.randn(64, *agent.controller.shape)
        start = agent.model.initial(16)

        def generation(agent: Any = agent, weights: Any = weights, start: Any = start) -> None:
            dream(agent.model, weights, start, 100, agent.rng, agent.spec.action)

        yield {"figure": "generation", "size": name, "seconds": rounded(_seconds(generation))}


def _estimate(settings: Settings) -> Iterator[dict[str, Any]]:
    """Seconds of the published CarRacing's phases on this machine: one process, no other load."""
    agent = _agent(PUBLISHED, 64)
    image, codes = torch.rand(100, 3, 64, 64), torch.rand(4, 1000, 64)
    flags = torch.zeros(4, 1000, dtype=torch.bool)
    batch = Batch({}, torch.randn(4, 1000, 3), torch.zeros(4, 1000), flags, flags, flags)
    obs = {"image": np.zeros((64, 64, 64, 3), np.uint8)}
    state = agent.act(obs)[1]
    rates = {
        "step": (_seconds(lambda: agent.act(obs, state)) / 64 + settings.env_ms / 1e3, FRAMES),
        "vae": (
            _seconds(lambda: agent.vae_optim.step(agent.model.vae.loss(image)[0])), VAE_UPDATES,
        ),
        "encode": (_seconds(lambda: agent.model.vae.encode(image)) / 100, FRAMES),
        "rnn": (  # a 25th of the batch
            25 * _seconds(lambda: agent.rnn_optim.step(agent.model.memory_loss(codes, batch)[0])),
            RNN_UPDATES,
        ),
        "generation": (0.0, GENERATIONS),
    }  # fmt: skip
    rates["generation"] = (rates["step"][0] * 64 * 16 * settings.episode_steps, GENERATIONS)
    total = 0.0
    for name, (seconds, count) in rates.items():
        total += seconds * count
        yield {
            "figure": "estimate", "phase": name, "each_s": rounded(seconds), "count": count,
            "days": rounded(seconds * count / 86400),
        }  # fmt: skip
    yield {"figure": "estimate", "phase": "all", "days": rounded(total / 86400)}


def _temperature(settings: Settings) -> Iterator[dict[str, Any]]:
    found = []
    for one in _evolved(settings, [(tau, True) for tau in settings.taus], every=0):
        found.append(one)
        yield one
    if settings.to:
        draw_temperature(found, Path(settings.to))


def _parts(settings: Settings) -> Iterator[dict[str, Any]]:
    found = []
    for one in _evolved(settings, [(1.0, False), (1.0, True)], settings.every):
        found.append(one)
        yield one
    if settings.to:
        draw_generations(found, Path(settings.to))


def draw_temperature(found: list[dict[str, Any]], folder: Path) -> Path:
    """Dreamt and real returns over tau, means and 95% of the seeds; the picture's path."""
    taus = sorted({one["tau"] for one in found})
    curves = []
    for name, key in (("in its dreams", "dream"), ("in the real environment", "real")):
        runs = [[one[key] for one in found if one["tau"] == tau] for tau in taus]
        curves.append(plots.mean_curve(name, taus, np.array(runs).T))
    made, axes = plots.figure()
    plots.draw(axes[0][0], curves, "What a controller earns", "temperature of its dreams", "return")
    plots.caption(made, f"{len(found) // len(taus)} searches each, in one world")
    plots.write_curves(folder / "temperature.csv", {"temperature": curves})
    return plots.save(made, folder / "temperature.png")


def draw_generations(found: list[dict[str, Any]], folder: Path) -> Path:
    """Returns over the generations by what C sees, the population's in dreams beside the search's
    mean in reality; the picture's path."""
    made, axes = plots.figure(2)
    panels = {}
    for panel, (key, title, ylabel) in zip(axes[0], (
        ("curve", "The population in dreams", "return of a dream"),
        ("real_curve", "The search's mean in the real environment", "return of an episode"),
    ), strict=True):  # fmt: skip
        curves = []
        for sees in sorted({one["sees"] for one in found}):
            runs = np.array([one[key] for one in found if one["sees"] == sees])  # [seeds, N, 2]
            curves.append(plots.mean_curve(f"C sees {sees}", runs[0, :, 0], runs[..., 1]))
        plots.draw(panel, curves, title, "generation", ylabel)
        panels[title] = curves
    plots.caption(made, f"{len(found) // 2} searches each, in one world")
    plots.write_curves(folder / "generations.csv", panels)
    return plots.save(made, folder / "generations.png")


@torch.no_grad()
def _film(settings: Settings) -> Iterator[dict[str, Any]]:
    """One dream from a recorded beginning, C acting, until it ends."""
    policy, codes = _trained(settings)
    agent: Any = policy.agent
    world, folder = agent.model, Path(settings.to)
    torch.manual_seed(settings.seeds[0])
    mean, _ = codes[torch.randint(len(codes), (1,))].chunk(2, -1)
    state, total = world.initial(1)._replace(z=mean), 0.0
    frames: list[np.ndarray] = []
    for _ in range(agent.config.search.dream_steps):
        picture = world.decode(state)[world.key][0]
        frames.append(enlarged((255 * picture).round().byte().numpy(), 128))
        state, reward, cont = world.step(state, agent.evaluate(state).prior.mode())
        total += float(reward)
        if float(cont) < 0.5:
            break
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dream.gif").write_bytes(gif(frames))
    shown = [frames[i] for i in np.linspace(0, len(frames) - 1, 10).round().astype(int)]
    write_picture(folder / "dream_strip.png", np.concatenate(shown, 1))
    yield {"figure": "film", "frames": len(frames), "return": rounded(total)}


def _trained(settings: Settings) -> tuple[Policy, torch.Tensor]:
    """The run's agent, and codes [S, 2 N] of recorded episodes' first rows."""
    policy = agents.load(settings.run, "cpu")
    if not isinstance(policy.agent, WorldModels):
        raise ConfigError(f"'{settings.run}' is no run of agent=world_models.")
    return policy, first_codes(agents.load_replay(settings.run), CODES, STARTS)


def _evolved(
    settings: Settings, cases: list[tuple[float, bool]], every: int
) -> Iterator[dict[str, Any]]:
    """A search for every case (tau, whether C sees h) and seed. every: generations between
    evaluations in the real environment; 0: at the end alone."""
    policy, codes = _trained(settings)
    todo = [(*case, seed) for case in cases for seed in settings.seeds]
    for tau, sees_h, seed in progress.each(todo, "evolving a controller"):
        yield _one(settings, policy, codes, tau, sees_h, seed, every)


@torch.no_grad()
def _one(
    settings: Settings,
    policy: Policy,
    codes: torch.Tensor,
    tau: float,
    sees_h: bool,
    seed: int,
    every: int,
) -> dict[str, Any]:
    agent: Any = policy.agent
    world, (actions, features) = agent.model, agent.controller.shape
    seen = np.zeros((actions, features), bool)
    seen[:, [*range(world.latent), *(range(world.latent, features) if sees_h else (-1,))]] = True
    sizes = {name: getattr(settings, name) for name in ("population", "trials", "generations")}
    config = replace(agent.config.search, **sizes)
    search, rng = Search(np.zeros(int(seen.sum())), config, seed), torch.Generator()
    rng.manual_seed(seed)
    world.temperature, steps = tau, config.dream_steps

    def controller_of(weights: np.ndarray) -> torch.Tensor:
        full = np.zeros((len(weights), actions, features), np.float32)
        full[:, seen] = weights
        return torch.from_numpy(full)

    def dreams(weights: np.ndarray, count: int) -> np.ndarray:
        mean, std = codes[torch.randint(len(codes), (count,), generator=rng)].chunk(2, -1)
        z = mean + std * torch.randn(mean.shape, generator=rng)
        start: VMState = world.initial(count)._replace(z=z)
        about = policy.spec.action, agent.config.one_sided, config.ends
        found = dream(world, controller_of(weights), start, steps, rng, *about)
        return found.returns.mean(1).numpy()

    def in_reality(episodes: int) -> Any:
        agent.controller.copy_(controller_of(search.mean[None])[0])
        return evaluate(agent, policy.spec, policy.env, episodes, seed=seed)

    curve, real_curve = [], []
    for generation in range(1, settings.generations + 1):
        returns = dreams(search.ask(), settings.trials)
        search.tell(returns)
        curve.append((generation, rounded(float(returns.mean()))))
        if every and (generation == 1 or generation % every == 0):
            mean = in_reality(max(1, settings.episodes // 5)).mean
            real_curve.append((generation, rounded(mean)))
    dreamt = float(dreams(search.mean[None], settings.episodes)[0])
    real = in_reality(settings.episodes)
    world.temperature = agent.config.rnn.temperature
    return {
        "figure": "temperature", "tau": tau, "sees": "z, h" if sees_h else "z", "seed": seed,
        "dream": rounded(dreamt), "dream_steps": steps, "real": rounded(real.mean),
        "real_std": rounded(real.std), "curve": curve, "real_curve": real_curve,
    }  # fmt: skip
