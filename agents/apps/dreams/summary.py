"""The figures of a report in summary.json, and the sentences that say them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from agents.apps.dreams.honesty import ONE, Honesty


def figures(result: Honesty) -> dict[str, Any]:
    """Plain values for JSON, null where there is no number: the headline, the calibration of
    returns, and the mean over the starts of every curve."""
    fit = result.calibration._asdict()
    curves = {
        what: {who: found.mean(0).tolist() for who, found in values.items()}
        for what, values in result.errors.items()
    }
    return {
        "starts_used": len(result.real),
        "steps_imagined": next(iter(result.errors.values()))[ONE].shape[1],
        "headline": {k: _finite(v) for k, v in result.headline().items()},
        "return": {name: _finite(value) for name, value in fit.items()},
        "mean_errors": curves,
    }


def parts(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The figures of each kind of episodes that were measured."""
    return [part for part in (told, told["under_random_actions"]) if part is not None]


def headline(told: Mapping[str, Any]) -> str:
    """The one number: how much better than repeating the last frame."""
    found = told["headline"]
    if not found:
        return "Nothing that the model sees can be decoded, so there is no error to compare."
    words = (
        f"After {found['step']} open-loop steps the {found['what']} of what the model expects is "
        f"{found['model']:.3g}, that of repeating what came last {found['repeated']:.3g}"
    )
    if found["ratio"] is not None:
        verdict = "better" if found["ratio"] > 1 else "no better"
        words += f": a ratio of {found['ratio']:.2f}, {verdict} than not predicting at all"
    if found["ratio_of_one_dream"] not in (None, found["ratio"]):
        words += f"; of one dream alone {found['ratio_of_one_dream']:.2f}"
    return f"{words} (means over {told['starts_used']} starts)."


def headlines(told: Mapping[str, Any]) -> list[str]:
    """The headline of each kind of episodes, and what became of its promises."""
    return [f"{part['episodes_are']}. {headline(part)} {promises(part)}" for part in parts(told)]


def promises(told: Mapping[str, Any]) -> str:
    """Whether imagined returns come true."""
    fit = told["return"]
    if fit["correlation"] is None:
        return f"Returns of one side do not vary: no slope to speak of; bias {fit['bias']:.3g}."
    return (
        f"Imagined against real return over {told['steps_imagined']} steps: correlation "
        f"{fit['correlation']:.2f}, slope {fit['slope']:.2f}, bias {fit['bias']:.3g}."
    )


def facts(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table at the top of the page."""
    rows = [
        ("Run", str(told["run"])),
        ("Dreams", f"{told['context']} frames seen, then {told['horizon']} imagined"),
        ("Seed", str(told["seed"])),
    ]
    return rows + [("Note", text) for text in told["left_out"]]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
