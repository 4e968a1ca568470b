"""Claims about runs themselves: what they survive, and how fast they are."""

from __future__ import annotations

from scripts.studies.reproduce.claim import (
    Claim,
    Measure,
    printed,
    stored,
)

BENCH = "scripts/bench.py"
KEPT, SPEED, GPU = "Reliability", "Speed on a CPU", "Speed on a GPU"

CLAIMS: tuple[Claim, ...] = (
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
        "How the time of an update grows: exponents along each axis.",
        (f"{BENCH} what=scaling folder={{out}}/scaling",),
        tuple(
            Measure(name, printed("time_exponent", axis=axis))
            for name, axis in (
                ("batch", "batch"),
                ("length", "length"),
                ("parameters", "size"),
                ("image side", "image"),
            )
        ),
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
