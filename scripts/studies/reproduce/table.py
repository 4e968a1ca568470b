"""The claims, each one entry; docs/ADD_AN_AGENT.md says how to add one.

Targets were set before the runs, and settings were chosen on other seeds than those named here.
The order is that of the page of results. Claims about applications and about runs themselves
stand in table_apps.py and table_speed.py.
"""

from __future__ import annotations

from typing import Literal

from scripts.studies.reproduce.claim import (
    Claim,
    Measure,
    evaluated,
    farthest,
    printed,
    summary,
    table,
)
from scripts.studies.reproduce.table_apps import CLAIMS as APPS
from scripts.studies.reproduce.table_speed import CLAIMS as SPEED

TRAIN = "scripts/train.py run={run} seed={seed}"
BENCH = "scripts/bench.py"
RETURN = summary("eval_return_mean")
ALSO = (
    Measure("deviation between episodes", summary("eval_return_std")),
    Measure("training, s", summary("wall_clock_s")),
)
PIXELS, STATE = "Learning from pixels", "Learning from the state"
PLANNING, DYNA = "Planning", "Dyna"
# One setting for all six. The task: the return to reach, and DreamerV3's published mean.
SUITE = {
    "cartpole_swingup": (700, 550),
    "reacher_easy": (600, 374),
    "ball_in_cup_catch": (900, 862),
    "finger_spin": (600, 493),
    "walker_walk": (600, 586),
    "cheetah_run": (310, 307),
}
# TD-MPC2 from the state at 100K frames. The task: the return to reach, and the published mean of
# size 5M.
STATES = {
    "cartpole_swingup": (800, 839),
    "reacher_easy": (850, 937),
    "ball_in_cup_catch": (930, 981),
    "finger_spin": (900, 948),
    "pendulum_swingup": (700, 724),
    "walker_walk": (900, 962),
}


def trained(
    name: str, sentence: str, words: str, numbers: tuple[float, float, int], about: str,
    *more: Measure, over: Literal["each", "mean"] = "each",
) -> Claim:  # fmt: skip
    """That a training from the state reaches a return. numbers: the least return, minutes of a
    seed, and how many seeds, from 0 on. more: what must be reached besides."""
    least, minutes, seeds = numbers
    measures = (Measure("return", RETURN, at_least=least, over=over), *more, *ALSO)
    command = (f"{TRAIN} {words}",)
    return Claim(
        name, STATE, sentence, command, measures, minutes, tuple(range(seeds)), about=about
    )


LEARNING: tuple[Claim, ...] = (
    Claim(
        "pendulum",
        PIXELS,
        "The default experiment swings Pendulum-v1 up, from 32x32 pixels.",
        (TRAIN,),
        (Measure("return", RETURN, at_least=-250), *ALSO),
        minutes=6,
        seeds=(0, 1, 2),
        about="DREAMER.md",
    ),
    Claim(
        "pendulum_soon",
        PIXELS,
        "The same in 5,000 steps, within three minutes of training.",
        (f"{TRAIN} steps=5000",),
        (
            Measure("return", RETURN, at_least=-200),
            Measure("training, s", summary("wall_clock_s"), at_most=180),
        ),
        minutes=3,
        seeds=(0, 1, 2),
        alone=True,
        about="DREAMER.md",
    ),
    Claim(
        "cartpole",
        PIXELS,
        "The same model balances CartPole-v1, from 32x64 pixels.",
        (f"{TRAIN} experiment=cartpole",),
        (Measure("return", RETURN, at_least=450), *ALSO),
        minutes=7,
        seeds=(0, 1, 2),
        about="DREAMER.md",
    ),
    *(
        Claim(
            f"dmc_{task}",
            PIXELS,
            f"{task} from 32x32 pixels at 100K frames, on a CPU (DreamerV3, published: {theirs}).",
            (f"{TRAIN} experiment=dmc_small env.id={task}",),
            (Measure("return", RETURN, at_least=least, over="mean"), *ALSO),
            minutes=60,
            seeds=(0, 1, 2),
            about="DREAMER.md",
        )
        for task, (least, theirs) in SUITE.items()
    ),
    Claim(
        "world_models",
        PIXELS,
        "World Models plays Dodge (random 15, perfect 100) after dreams alone.",
        (f"{TRAIN} agent=world_models",),
        (Measure("return", RETURN, at_least=87), Measure("training, s", summary("wall_clock_s"))),
        minutes=10,
        seeds=(1, 2, 3),
        about="WORLD_MODELS.md",
    ),
    Claim(
        "world_models_pendulum",
        PIXELS,
        "World Models swings Pendulum-v1 up from pixels (random -1201), after dreams alone.",
        (f"{TRAIN} experiment=world_models_pendulum",),
        (Measure("return", RETURN, at_least=-319), Measure("training, s", summary("wall_clock_s"))),
        minutes=12,
        seeds=(0, 1, 2),
        about="WORLD_MODELS.md",
    ),
    Claim(
        "muzero_pixels",
        PIXELS,
        "MuZero plays Dodge (random 15, perfect 100) from its pixels.",
        (f"{TRAIN} experiment=muzero_pixels",),
        (Measure("return", RETURN, at_least=95), *ALSO),
        minutes=11,
        seeds=(0, 1, 2),
        about="MUZERO.md",
    ),
    Claim(
        "dqn",
        STATE,
        "DQN balances CartPole-v1 in 50,000 steps, as stable-baselines3's does beside it.",
        (f"{BENCH} what=peers agents=[dqn] seeds=[{{seed}}]",),
        (
            Measure("return", printed("return", figure="run", library="ours"), at_least=450),
            Measure("theirs", printed("return", figure="run", library="stable-baselines3")),
            Measure("CPU s", printed("train_cpu_s", figure="run", library="ours")),
            Measure(
                "their CPU s", printed("train_cpu_s", figure="run", library="stable-baselines3")
            ),
        ),
        minutes=5,
        seeds=(0, 1, 2),
        about="AGENTS.md",
    ),
    Claim(
        "muzero",
        STATE,
        "MuZero balances CartPole-v1 within 20,000 steps.",
        (f"{TRAIN} agent=muzero",),
        (Measure("return", RETURN, at_least=475), Measure("training, s", summary("wall_clock_s"))),
        minutes=15,
        seeds=(0, 1, 2),
        about="MUZERO.md",
    ),
    trained(
        "muzero_pendulum",
        "EfficientZero V2, small, swings Pendulum-v1 up: a search over actions that it draws.",
        "experiment=efficientzero_v2",
        (-200, 10, 3),
        "MUZERO.md",
    ),
    trained(
        "tic_tac_toe",
        "MuZero, by self-play alone, never loses at tic-tac-toe against perfect play (200 games).",
        "experiment=tic_tac_toe",
        (0, 12, 3),
        "MUZERO.md",
    ),
    Claim(
        "sac",
        STATE,
        "SAC swings Pendulum-v1 up in 20,000 steps, as stable-baselines3's does beside it.",
        (f"{BENCH} what=peers agents=[sac] seeds=[{{seed}}]",),
        (
            Measure("return", printed("return", figure="run", library="ours"), at_least=-170),
            Measure("theirs", printed("return", figure="run", library="stable-baselines3")),
            Measure("CPU s", printed("train_cpu_s", figure="run", library="ours")),
            Measure(
                "their CPU s", printed("train_cpu_s", figure="run", library="stable-baselines3")
            ),
        ),
        minutes=22,
        seeds=(0, 1, 2),
        about="AGENTS.md",
    ),
    trained(
        "pets",
        "PETS, small, swings its own cart-pole up in 1,600 steps (published: 163 to 176).",
        "experiment=pets_small steps=1600",
        (160, 5, 5),
        "ENSEMBLES.md",
    ),
    trained(
        "planet_small",
        "PlaNet, small, swings Pendulum-v1 up from 32x32 pixels by planning alone.",
        "experiment=planet_small",
        (-300, 11, 3),
        "PLANNING.md",
    ),
    trained(
        "mbpo",
        "MBPO swings Pendulum-v1 up in a fifth of SAC's 20,000 steps.",
        "agent=mbpo",
        (-170, 8, 5),
        "ENSEMBLES.md",
        over="mean",
    ),
    trained(
        "pets_cartpole",
        "PETS balances a pole by a continuous force after 500 steps, and does so to the end.",
        "experiment=pets_cartpole eval_every=250",
        (200, 2, 5),
        "ENSEMBLES.md",
        Measure("worst evaluation from 500 steps on", evaluated(500, min), at_least=200),
    ),
    trained(
        "pets_reacher",
        "PETS, small, moves MuJoCo's Reacher to its target within 30 episodes (random: -126).",
        "experiment=pets_reacher_small",
        (-18, 12, 3),
        "ENSEMBLES.md",
    ),
    trained(
        "pets_process",
        "A Gaussian process, planned in, swings Pendulum-v1 up within 10 episodes.",
        "experiment=pets_process",
        (-200, 8, 3),
        "ENSEMBLES.md",
        over="mean",
    ),
    trained(
        "mbpo_inverted_pendulum",
        "MBPO balances MuJoCo's inverted pendulum within 4,000 steps.",
        "experiment=mbpo_inverted_pendulum_small",
        (1000, 3, 5),
        "ENSEMBLES.md",
    ),
    trained(
        "tdmpc2_pendulum",
        "TD-MPC2 swings Pendulum-v1 up within 10,000 steps.",
        "agent=tdmpc2",
        (-170, 10, 3),
        "TDMPC2.md",
    ),
    trained(
        "tdmpc2_cartpole",
        "TD-MPC2 balances CartPole-v1, whose actions are discrete, within 15,000 steps.",
        "agent=tdmpc2 env=cartpole_state agent.model.discount=0.99 agent.target_rate=0.05 "
        "steps=15000",
        (475, 15, 3),
        "TDMPC2.md",
    ),
    trained(
        "tdmpc2_inverted_pendulum",
        "TD-MPC2 balances MuJoCo's inverted pendulum, and does so for 50,000 steps more.",
        "agent=tdmpc2 env=inverted_pendulum agent.model.discount=0.99 agent.target_rate=0.05 "
        "agent.planner.least_std=0.3 agent.entropy=1e-2 steps=60000 eval_every=5000",
        (1000, 30, 3),
        "TDMPC2.md",
        Measure("worst evaluation from 10,000 steps on", evaluated(10_000, min), at_least=900),
    ),
    *(
        Claim(
            f"tdmpc2_{task}",
            STATE,
            f"{task} from the state at 100K frames, on a CPU (TD-MPC2, published: {theirs}).",
            (f"{TRAIN} experiment=tdmpc2_tiny env.id={task}",),
            (Measure("return", RETURN, at_least=least, over="mean"), *ALSO),
            minutes=60,
            seeds=(0, 1, 2),
            about="TDMPC2.md",
        )
        for task, (least, theirs) in STATES.items()
    ),
    Claim(
        "planners",
        PLANNING,
        "On Pendulum's true equations iCEM comes near the optimum, -149.9.",
        (f"{BENCH} what=planners tasks=[pendulum]",),
        (
            Measure("iCEM", printed("return", planner="icem"), at_least=-180),
            Measure("CEM, warm", printed("return", planner="cem")),
            Measure("MPPI", printed("return", planner="mppi")),
            Measure("random shooting", printed("return", planner="shooting")),
        ),
        minutes=8,
        about="PLANNING.md",
    ),
    Claim(
        "dyna",
        DYNA,
        "The figures of chapter 8 of Sutton and Barto, beside 25 anchors of an independent re-run.",
        ("scripts/plot.py figure=all out={out}/figures",),
        (
            Measure(
                "farthest anchor, standard errors",
                table("figures/*_checks.csv", "apart", farthest),
                at_most=2.5,
            ),
        ),
        minutes=4,
        about="DYNA.md",
    ),
    Claim(
        "dyna_speed",
        DYNA,
        "Compiled planning makes 5 million updates a second, 100 times a plain Python loop.",
        (f"{BENCH} what=dyna",),
        (
            Measure(
                "updates a second",
                printed("value", name="planning updates per second, dyna_q"),
                at_least=5e6,
            ),
            Measure(
                "times the plain loop",
                printed("value", pick=min, unit="times"),
                at_least=100,
            ),
        ),
        minutes=3,
        alone=True,
        about="DYNA.md",
    ),
)

CLAIMS = (*LEARNING, *APPS, *SPEED)
