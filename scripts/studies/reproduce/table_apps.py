"""Claims about what people do with a trained agent: other rewards, detectors, deployment."""

from __future__ import annotations

from typing import Any

from scripts.studies.reproduce.claim import (
    Claim,
    Measure,
    Read,
    difference,
    printed,
)

TRAIN, BENCH = "scripts/train.py run={run} seed={seed}", "scripts/bench.py"
REUSE, UNKNOWN, ROBOT = "One model, many tasks", "Knowing the unknown", "Deployment"
LATE, PAUSED = printed("missed", 2, measure="tick"), printed("over_deadline", 2, measure="idle")
# A task of dm_control that is as easy to watch as Pendulum, for the detector.
BALANCE = (
    "experiment=pendulum env=dmc env.id=cartpole_balance env.action_repeat=2 env.time_limit=125 "
    "env.fast_render=true env.image_size=[32,32] agent.model.discount_horizon=50 steps=12000 "
    "train_ratio=128 agent.optim.anneal=2700"
)


def detected(command: int, ordinary: int) -> tuple[Measure, ...]:
    """What a detector must reach, at middle strength, of what `bench.py what=ood` prints."""

    def one(figure: str, kind: str) -> Read:
        where: Any = {"mean_over": kind, "level": "middle", "column": "combined"}
        return printed(figure, command, **where)

    alarmed = printed("alarmed", command, false_alarms="ordinary", column="combined")
    return (
        Measure("AUROC, visible", one("auroc_episode", "visible"), at_least=0.98),
        Measure("AUROC, dynamics", one("auroc_episode", "dynamics"), at_least=0.9),
        Measure("visible caught in 10 ticks", one("caught", "visible"), at_least=0.95),
        Measure(f"of {ordinary} ordinary alarmed", alarmed, at_most=ordinary // 100),
    )


CLAIMS: tuple[Claim, ...] = (
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
        detected(command=0, ordinary=500),
        minutes=60,
        needs="pendulum",
        about="DETECTOR.md",
    ),
    Claim(
        "detector_cartpole",
        UNKNOWN,
        "The same on dm_control's cartpole_balance, at one strength.",
        (
            f"{TRAIN} {BALANCE}",
            f"{BENCH} what=ood run={{run}} folder={{out}}/study seed=1 levels=[middle] episodes=10 "
            "normal=200 unusual=40",
        ),
        detected(command=1, ordinary=200),
        minutes=60,
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
            Measure("short in the worst", printed("short_worst", 1, all_shifts=25), at_most=0.1),
        ),
        minutes=60,
        needs="pendulum",
        about="DEPLOY.md",
    ),
    Claim(
        "deadline",
        ROBOT,
        "At a period of 10 ms the guarded export answers in time, as far as the machine does.",
        (
            "scripts/fit_detector.py run={needs}",
            "scripts/export.py run={needs}",
            f"{BENCH} what=deploy run={{needs}}/export ticks=20000",
        ),
        (
            Measure("p99.9 of a tick, ms", printed("p99_9", 2, measure="tick"), at_most=8),
            Measure("late ticks", LATE),
            Measure("late, an idle loop", PAUSED),
            Measure("late beyond the idle loop's", difference(LATE, PAUSED), at_most=0),
        ),
        minutes=15,
        needs="pendulum",
        alone=True,
        about="DEPLOY.md",
    ),
)
