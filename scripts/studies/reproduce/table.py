"""The claims, each one entry; docs/ADD_AN_AGENT.md says how to add one.

Targets were set before the runs, and settings were chosen on other seeds than those named here.
The order is that of the page of results.
"""

from __future__ import annotations

from scripts.studies.reproduce.claim import (
    Claim,
    Measure,
    farthest,
    printed,
    stored,
    summary,
    table,
)

TRAIN = "scripts/train.py run={run} seed={seed}"
BENCH = "scripts/bench.py"
RETURN = summary("eval_return_mean")
PIXELS, STATE = "Learning from pixels", "Learning from the state"
REUSE, UNKNOWN, ROBOT = "One model, many tasks", "Knowing the unknown", "Deployment"
PLANNING, DYNA, KEPT = "Planning", "Dyna", "Reliability"
SPEED, GPU = "Speed on a CPU", "Speed on a GPU"
# Agents at 100K frames from pixels; DreamerV3's published means: 550, 374, 862, 493, 586, 307.
SUITE = {
    "cartpole_swingup": 700, "reacher_easy": 600, "ball_in_cup_catch": 900, "finger_spin": 600,
    "walker_walk": 600, "cheetah_run": 310,
}  # fmt: skip

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "pendulum",
        PIXELS,
        "The default experiment swings Pendulum-v1 up, from 32x32 pixels.",
        (TRAIN,),
        (Measure("return", RETURN, at_least=-250), Measure("training, s", summary("wall_clock_s"))),
        minutes=6,
        seeds=(0, 1, 2),
        about="DREAMER.md",
    ),
    Claim(
        "cartpole",
        PIXELS,
        "The same model balances CartPole-v1, from 32x64 pixels.",
        (f"{TRAIN} experiment=cartpole",),
        (Measure("return", RETURN, at_least=450), Measure("training, s", summary("wall_clock_s"))),
        minutes=7,
        seeds=(0, 1, 2),
        about="DREAMER.md",
    ),
    *(
        Claim(
            f"dmc_{task}",
            PIXELS,
            f"One small setting for six tasks of the DeepMind suite at 100K frames: {task}.",
            (f"{TRAIN} experiment=dmc_small env.id={task}",),
            (Measure("return", RETURN, at_least=least, over="mean"),),
            minutes=60,
            seeds=(0, 1, 2),
            about="DREAMER.md",
        )
        for task, least in SUITE.items()
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
    Claim(
        "reuse",
        REUSE,
        "Actors trained in dreams alone come as far as those trained in the environment.",
        (f"{BENCH} what=reuse folder={{out}}/runs seeds=[{{seed}}]",),
        (
            Measure(
                "share of the way, a new reward",
                printed("share", pick=min, task=("hang", "spin")),
                at_least=0.9,
            ),
            Measure(
                "share, no reward before",
                printed("share", from_="explore", task="reward"),
                at_least=0.8,
            ),
            Measure("share, a recording alone", printed("share", from_="offline"), at_least=0.9),
            Measure("an actor's training, s", printed("train_seconds", pick=max), at_most=300),
        ),
        minutes=55,
        seeds=(0, 1, 2),
        about="REUSE.md",
    ),
    Claim(
        "detector",
        UNKNOWN,
        "On Pendulum, visible changes and changed dynamics are told from ordinary episodes.",
        (f"{BENCH} what=ood run={{needs}} folder={{out}}/study seed=2",),
        (
            Measure(
                "AUROC, visible",
                printed("auroc_episode", mean_over="visible", level="middle", column="combined"),
                at_least=0.98,
            ),
            Measure(
                "AUROC, dynamics",
                printed("auroc_episode", mean_over="dynamics", level="middle", column="combined"),
                at_least=0.9,
            ),
            Measure(
                "visible caught in 10 ticks",
                printed("caught", mean_over="visible", level="middle", column="combined"),
                at_least=0.95,
            ),
            Measure(
                "of 500 ordinary alarmed",
                printed("alarmed", false_alarms="ordinary", column="combined"),
                at_most=5,
            ),
        ),
        minutes=60,
        needs="pendulum",
        about="DETECTOR.md",
    ),
    Claim(
        "guard",
        ROBOT,
        "A guarded agent loses little to the better of policy and fallback, in 25 changed worlds.",
        (
            "scripts/fit_detector.py run={needs}",
            f"{BENCH} what=guard run={{needs}} folder={{out}}/study",
        ),
        (
            Measure("guarded, share of the span", printed("guarded", 1, all_shifts=25)),
            Measure("policy alone", printed("policy", 1, all_shifts=25)),
            Measure("fallback alone", printed("fallback", 1, all_shifts=25)),
            Measure("short in the worst", printed("short_worst", 1, all_shifts=25)),
        ),
        minutes=60,
        needs="pendulum",
        about="DEPLOY.md",
    ),
    Claim(
        "deadline",
        ROBOT,
        "At a period of 10 ms the guarded export answers in time, beside a hanging policy too.",
        (
            "scripts/fit_detector.py run={needs}",
            "scripts/export.py run={needs}",
            f"{BENCH} what=deploy run={{needs}}/export ticks=20000",
        ),
        (
            Measure("p99.9 of a tick, ms", printed("p99_9", 2, measure="tick"), at_most=8),
            Measure("late of 20,000", printed("missed", 2, measure="tick")),
            Measure("late of an idle loop", printed("over_deadline", 2, measure="idle")),
        ),
        minutes=15,
        needs="pendulum",
        alone=True,
        about="DEPLOY.md",
    ),
    Claim(
        "planners",
        PLANNING,
        "On Pendulum's true equations iCEM comes near the optimum, -149.9.",
        (f"{BENCH} what=planners tasks=[pendulum]",),
        (
            Measure("iCEM, beta 0.25", printed("return", planner="icem"), at_least=-180),
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
    Claim(
        "faults",
        KEPT,
        "Fifty SIGKILLs at random moments change nothing in a run.",
        (f"{BENCH} what=faults",),
        (Measure("differences", printed("differences"), at_most=0),),
        minutes=5,
        about="RELIABILITY.md",
    ),
    Claim(
        "memory",
        KEPT,
        "The memory of a run does not grow.",
        (f"{BENCH} what=memory",),
        (
            Measure("bytes a step", printed("growth_bytes_per_step"), at_most=100),
            Measure("most, MB", printed("largest_mb")),
        ),
        minutes=60,
        about="RELIABILITY.md",
    ),
    Claim(
        "update_1m",
        SPEED,
        "An update of the published 1m model at 16x64 steps of 64x64 pixels, on two cores.",
        (f"{BENCH} what=update size=1m image=64 batch=16 length=64 threads=2",),
        (
            Measure("seconds", printed("seconds", figure="update"), at_most=1.6),
            Measure("of peak", printed("of_peak", figure="update")),
            Measure("peak memory, MB", printed("peak_memory_mb", figure="update")),
        ),
        minutes=2,
        alone=True,
        about="SPEED.md",
    ),
    Claim(
        "loop",
        SPEED,
        "The default experiment's loop keeps most of the rate of updates alone.",
        (f"{BENCH} what=train experiment=pendulum",),
        (
            Measure("of updates alone", printed("of_updates_alone", figure="train")),
            Measure("updates a second", printed("updates_per_s", figure="train")),
            Measure("agent steps a second", printed("agent_steps_per_s", figure="train")),
        ),
        minutes=2,
        alone=True,
        about="SPEED.md",
    ),
    Claim(
        "acting",
        SPEED,
        "The 1m model decides in milliseconds, one thread, 64x64 pixels.",
        (f"{BENCH} what=act size=1m",),
        (
            Measure("one environment, ms", printed("p50_ms", envs=1)),
            Measure("16, ms", printed("p50_ms", envs=16)),
            Measure("256, ms", printed("p50_ms", envs=256)),
        ),
        minutes=2,
        alone=True,
        about="SPEED.md",
    ),
    Claim(
        "replay",
        SPEED,
        "Batches are drawn at the speed of the memory.",
        (f"{BENCH} what=replay threads=2",),
        (
            Measure(
                "memory, share of a copy", printed("of_a_copy", storage="memory"), at_least=0.8
            ),
            Measure("files, share of a copy", printed("of_a_copy", storage="disk"), at_least=0.5),
        ),
        minutes=1,
        alone=True,
        about="SPEED.md",
    ),
    Claim(
        "scaling",
        SPEED,
        "Time grows no faster than arithmetic with batch, length, size and image.",
        (f"{BENCH} what=scaling folder={{out}}/scaling",),
        (Measure("time over arithmetic", printed("time_over_arithmetic", figure="all")),),
        minutes=15,
        alone=True,
        about="SPEED.md",
    ),
    Claim(
        "gpu",
        GPU,
        "Updates of 12m and 50m at 16x64, and a loop at train ratio 512 that keeps up with them.",
        ("scripts/gpu_report.py out={out}/report",),
        (
            Measure("update 12m, ms", stored("report/report.json", "update_12m.ms"), at_most=12),
            Measure("update 50m, ms", stored("report/report.json", "update_50m.ms"), at_most=25),
            Measure(
                "loop, of updates alone",
                stored("report/report.json", "loop.of_updates_alone"),
                at_least=0.9,
            ),
            Measure("first update, s", stored("report/report.json", "update_12m.first_update_s")),
            Measure("bf16 loss over fp32", stored("report/report.json", "precision.ratio")),
        ),
        minutes=8,
        alone=True,
        needs_gpu=True,
        about="SPEED.md",
    ),
)
