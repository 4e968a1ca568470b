"""Whoever waits for numba is told why."""

from __future__ import annotations

import numba
import pytest

from worldmodel import progress
from worldmodel.accel import compiling


@pytest.mark.parametrize(("terminal", "before"), [(False, ""), (True, "\r\x1b[2K")])
def test_that_code_is_compiled_is_said_once(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, before: str
) -> None:
    monkeypatch.setattr(compiling.LISTENER, "said", False)
    lines: list[str] = []
    with progress.watched(lines.append, terminal):
        for function in (lambda x: x + 1, lambda x: x + 2):
            made = numba.njit(function)
            assert [made(1), made(2)] == [function(1), function(2)]
    assert lines == [before + compiling.TEXT]
