"""Progress lines and the wish to stop."""

from __future__ import annotations

import signal
import sys

import pytest

from agents.run import progress
from agents.run.progress import Progress, Stopper
from worldmodel.progress import duration


def test_plain_lines_tell_recent_rates_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    said: list[str] = []
    bar = Progress(1000, (100, 10), None, said.append)
    for second in range(1, 101):
        now[0] += 1
        # Ten steps a second at first, two later.
        steps = 100 + 10 * min(second, 50) + 2 * max(0, second - 50)
        bar.update(steps, 10 + second // 2, float(second))
    assert len(said) == 12  # one each eight seconds
    assert "step 180/1,000 | 10.0 steps/s | 0.50 updates/s | return - | 1:22 left" in said[0]
    assert said[0].startswith(" 18% ")
    assert "step 692/1,000 | 2.0 steps/s" in said[-1]
    assert said[-1].endswith("2:34 left")
    bar.score = -12.34
    now[0] += 20
    bar.update(700, 60, 120.0)
    assert "return -12.3" in said[-1]


def test_a_time_limit_counts_too() -> None:
    bar = Progress(1000, (0, 0), 60.0, print)
    assert bar.fraction(100, 0.0) == 0.1
    assert bar.fraction(100, 30.0) == 0.5
    assert bar.fraction(2000, 30.0) == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (61, "1:01"), (3723, "1:02:03"), (-3, "0:00"), (float("inf"), "-")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_second_signal_takes_effect_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopper() as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before
