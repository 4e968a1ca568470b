"""Claims: run once, judged by their bounds, never run again, never mixed with other code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.studies.bench import bench_command
from scripts.studies.plot import plot_command
from scripts.studies.reproduce import cli, page, results
from scripts.studies.reproduce import run as runner
from scripts.studies.reproduce.claim import (
    Claim,
    Measure,
    evaluated,
    farthest,
    printed,
    returns,
    summary,
    table,
)
from scripts.studies.reproduce.table import CLAIMS

SCRIPT = """
import json, sys, time
folder, seed, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
with open(folder + "/../ran", "a") as file:
    file.write(f"{seed:g} ")
time.sleep(seconds)
print("a line for people")
print(json.dumps({"figure": "score", "value": 10 - seed, "inner": {"list": [1, 2]}}))
sys.exit(int(seed == 9))
"""
RANDOM = (
    "scripts/train.py agent=random env=pendulum_state steps=500 log_every=100 final_episodes=2 "
    "env.time_limit=50 eval_every=0 run={run} seed={seed}"
)


def small_claim(folder: Path, seconds: float = 0.0, **changes: object) -> Claim:
    """A claim about a script that prints 10 - seed."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    made = Claim(
        "small", "Small", "Ten less the seed.", (f"{script} {{out}} {{seed}} {seconds}",),
        (Measure("score", printed("value", figure="score"), at_least=8.5),),
        minutes=1, seeds=(0, 1),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def run_claims(
    monkeypatch: pytest.MonkeyPatch, claims: tuple[Claim, ...], *words: str
) -> tuple[int, str]:
    monkeypatch.setattr(cli, "CLAIMS", claims)
    monkeypatch.setattr(cli, "BY_NAME", {claim.name: claim for claim in claims})
    said: list[str] = []
    return cli.reproduce_command(said.append, words), "\n".join(said)


def test_a_claim_is_run_once_and_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    claim, out = small_claim(tmp_path), f"out={tmp_path / 'made'}"
    code, said = run_claims(monkeypatch, (claim,), "small", out)
    assert code == 0, said
    assert "pass  small: Ten less the seed." in said
    assert "score: 10 / 9, mean 9.5  (score at least 8.5)" in said
    found = json.loads((tmp_path / "made" / "small" / "results.json").read_text())
    assert [row["figures"]["score"] for row in found["rows"]] == [10, 9]
    assert {"machine", "commit", "torch", "date", "commands"} <= found["rows"][0].keys()
    code, said = run_claims(monkeypatch, (claim,), "small", out, "seeds=0,1,2")
    assert code == 1
    assert "FAIL  small" in said  # seed 2 scores 8
    ran = (tmp_path / "made" / "small" / "ran").read_text().split()
    assert sorted(ran) == ["0", "1", "2"]
    code, said = run_claims(monkeypatch, (claim,), "list", out)
    assert "finished: seed 1, code" in said


def test_a_failing_command_is_a_failed_claim_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    claim, out = small_claim(tmp_path), f"out={tmp_path / 'made'}"
    for times in (1, 2):
        code, said = run_claims(monkeypatch, (claim,), "small", out, "seeds=9")
        assert code == 1
        assert "seed 9: command 0 failed, see" in said
        assert len((tmp_path / "made" / "small" / "ran").read_text().split()) == times


def test_a_figure_that_is_missing_fails_the_claim(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    claim = small_claim(tmp_path, measures=(Measure("x", printed("nowhere"), at_least=0),))
    code, said = run_claims(monkeypatch, (claim,), "small", f"out={tmp_path / 'made'}")
    assert code == 1
    assert "'x' cannot be read: ValueError: 'nowhere' is None, no number" in said


@pytest.mark.parametrize(("field", "word"), [("commit", "deadbee"), ("commands", ["other"])])
def test_a_folder_of_other_code_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, field: str, word: object
) -> None:
    claim, out = small_claim(tmp_path), tmp_path / "made"
    assert run_claims(monkeypatch, (claim,), "small", f"out={out}")[0] == 0
    path = out / "small" / "seed-0" / runner.BEGUN
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: word}))
    code, said = run_claims(monkeypatch, (claim,), "small", f"out={out}")
    assert code == 2
    assert said.splitlines()[-1].startswith(f"error: '{path.parent}' was begun with")


def run_small(folder: str) -> None:
    """For a process of its own, which is killed."""
    out = Path(folder) / "made" / "small"
    claim = small_claim(Path(folder), 0.1, commands=small_claim(Path(folder)).commands)
    slow = replace(claim, commands=(claim.commands[0].replace(" 0.0", " 60"),))
    jobs = [runner.Job(claim, 0, out / "seed-0"), runner.Job(slow, 1, out / "seed-1")]
    runner.Runner(print, 1).run(jobs)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere commands outlive their parent")
def test_killed_at_any_moment_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    call = f"from tests.agents.test_reproduce import run_small; run_small({str(tmp_path)!r})"
    child = subprocess.Popen([sys.executable, "-c", call], cwd=runner.ROOT)
    ran = tmp_path / "made" / "small" / "ran"
    deadline = time.monotonic() + 120
    while not (ran.exists() and "1" in ran.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    out, claim = tmp_path / "made" / "small", small_claim(tmp_path)
    begun = out / "seed-1" / runner.BEGUN
    assert not (out / "seed-1" / runner.RESULT).exists()
    fast = runner.Job(claim, 1, out / "seed-1")
    text = json.loads(begun.read_text())
    begun.write_text(
        json.dumps({**text, "commands": [c.replace(" 60", " 0.0") for c in text["commands"]]})
    )
    runner.Runner(lambda _: None, 2).run([runner.Job(claim, 0, out / "seed-0"), fast])
    assert ran.read_text().split() == ["0", "1", "1"]
    rows = results.rows_of([runner.Job(claim, 0, out / "seed-0"), fast])
    assert [row["figures"]["score"] for row in rows] == [10, 9]
    assert rows[1]["minutes"] is None  # it was stopped on the way: nobody knows


@pytest.mark.slow
def test_a_training_with_its_curves_becomes_a_row_of_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    claim = Claim(
        "random", "Group", "Random play is poor.", (RANDOM,),
        (Measure("return", summary("eval_return_mean"), at_most=-100),), minutes=1,
    )  # fmt: skip
    folder = tmp_path / "docs" / "results"
    words = (f"out={tmp_path / 'made'}", f"results={folder}")
    code, said = run_claims(monkeypatch, (claim,), "random", words[0])
    assert code == 0, said
    code, said = run_claims(monkeypatch, (claim,), "page", "add=all", *words)
    assert code == 0, said
    assert {path.name for path in folder.iterdir()} == {"random.json", "random.csv", "random.png"}
    text = (tmp_path / "docs" / "RESULTS.md").read_text()
    assert text.splitlines()[2] == "- **Measured on a CPU:** random."
    assert "**Measured on a GPU:** nothing so far." in text
    row = next(line for line in text.splitlines() if line.startswith("| `random`"))
    assert "| return at most -100 | return: -" in row
    assert "| reached | A, " in row
    drawn = tmp_path / "figures"
    run = tmp_path / "made" / "random" / "seed-0" / "run"
    assert (
        plot_command(said_to := [].append, ["figure=curves", f"folders=[{run}]", f"out={drawn}"])
        == 0
    ), said_to
    assert (drawn / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (drawn / "curves.csv").read_text().startswith("task,seed,frames")


def test_a_claim_without_all_its_seeds_is_not_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    claim, out = small_claim(tmp_path), f"out={tmp_path / 'made'}"
    assert run_claims(monkeypatch, (claim,), "small", out, "seeds=0")[0] == 0
    words = ("page", "add=small", out, f"results={tmp_path / 'docs'}")
    code, said = run_claims(monkeypatch, (claim,), *words)
    assert code == 2
    assert "small has no result for the seeds [1]" in said
    assert "**Claimed and not measured yet:** small." in page.text((claim,), tmp_path / "none")


def test_the_table_is_sound() -> None:
    names = [claim.name for claim in CLAIMS]
    assert len({*names, *cli.VERBS}) == len(names) + len(cli.VERBS)
    for claim in CLAIMS:
        assert not claim.needs or claim.needs in names
        job = runner.Job(claim, claim.seeds[0], Path("x"), Path("y") if claim.needs else None)
        for words in job.commands():
            assert (runner.ROOT / words[0]).is_file()
        if claim.about:
            assert (runner.ROOT / "docs" / claim.about).is_file(), claim.about
    chosen = cli.quick(gpu=False)
    assert len(chosen) > 5
    assert sum(c.minutes / (1 if c.alone else 2) for c in chosen) <= 30


def test_the_page_is_what_its_files_say() -> None:
    folder = runner.ROOT / "docs" / "results"
    written = (runner.ROOT / "docs" / "RESULTS.md").read_text()
    same = written == page.text(CLAIMS, folder)
    assert same, "run `python scripts/reproduce.py page`; figures belong into docs/results/"
    known = {claim.name: {measure.name for measure in claim.measures} for claim in CLAIMS}
    for path in folder.glob("*.json"):
        for row in results.read(path.stem, folder):
            assert row["figures"].keys() <= known[path.stem], path.name


TINY = {  # words that make the commands of claims small; the last of a word counts
    "acting": "image=32 calls=2 windows=1",
    "replay": "capacity=300 batch=2 length=4 windows=1 seconds=0.01 image=32",
    "loop": "size=tiny batch=2 length=8 horizon=2 windows=1 seconds=0.2 set=[train_ratio=16]",
    "update_1m": "size=tiny image=32 batch=2 length=4 horizon=2 windows=1 warmup=1 threads=1",
    "dyna_speed": "windows=1 updates=1000 plain_updates=100 steps=200",
}


@pytest.mark.parametrize("name", TINY)
def test_claims_read_what_their_commands_print(name: str, tmp_path: Path) -> None:
    claim = next(claim for claim in CLAIMS if claim.name == name)
    [words] = runner.Job(claim, 0, tmp_path).commands()
    small = TINY[name].split()
    keys = [word.partition("=")[0] for word in small]
    kept = [word for word in words[1:] if word.partition("=")[0] not in keys]
    said: list[str] = []
    assert bench_command(said.append, [*kept, *small]) == 0, said
    (tmp_path / "0.out").write_text("\n".join(said))
    for measure in claim.measures:
        assert isinstance(measure.read(tmp_path), float), measure.name


def test_numbers_are_read_from_what_commands_leave(tmp_path: Path) -> None:
    (tmp_path / "0.out").write_text('noise\n{"a": 1, "b": {"c": 2.5}}\n{"a": 2, "b": {"c": 4}}\n')
    assert printed("b.c", a=1)(tmp_path) == 2.5
    assert printed("b.c", pick=max, a=(1, 2))(tmp_path) == 4
    with pytest.raises(ValueError, match="2 values were found"):
        printed("b.c")(tmp_path)
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    path = tmp_path / "run" / "evaluation" / "returns.csv"
    path.write_text("episode,return,length\n0,-10,3\n1,4,5\n")
    assert returns()(tmp_path) == -3
    assert table("run/*/returns.csv", "return", farthest)(tmp_path) == 10
    with pytest.raises(FileNotFoundError):
        table("nothing*.csv", "return")(tmp_path)
    lines = [{"step": 10, "eval/return": 1}, {"step": 15}, {"step": 20, "eval/return": 7},
             {"step": 30, "eval/return": 5}]  # fmt: skip
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert (evaluated(11, min)(tmp_path), evaluated(0, min)(tmp_path)) == (5, 1)
    with pytest.raises(ValueError, match="0 values were found"):
        evaluated(31, min)(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "reproduce.py list | quick"),
        (("pendulm",), "Did you mean 'pendulum'?"),
        (("list", "pendulum"), "Give one of list"),
        (("out=x",), "Give list, quick"),
        (("quick", "seeds=a"), "Give whole numbers"),
        (("quick", "sedes=1"), "Did you mean 'seeds'?"),
        (("page", "add=nothing"), "Unknown claim 'nothing'"),
    ],
)
def test_mistakes_cost_one_line(words: tuple[str, ...], message: str) -> None:
    said: list[str] = []
    assert cli.reproduce_command(said.append, words) == (2 if words else 0)
    assert message in said[-1]
