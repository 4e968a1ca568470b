"""What the episodes of `what=guard` come to: figures from returns and alarms, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

WHO = ("guarded", "policy", "fallback")
DRAWS = 1000  # of the bootstrap
Row = Mapping[str, Any]


def verdict(
    rows: list[dict[str, Any]], ordinary: Row, troubles: Sequence[Row], within: int
) -> Iterator[dict[str, Any]]:
    """Figures for each shift and level, for each shift, for each trouble, and for all together.

    rows: of a shift and a level each: returns [episodes] by who acted, the delays of each episode's
    alarms, and the ticks that were not the policy's. ordinary: returns without a shift.
    """
    low, high = (float(np.mean(ordinary[who]["returns"])) for who in ("random", "policy"))
    span = max(abs(high - low), 1e-9)
    for row in rows:
        yield {key: row[key] for key in ("shift", "kind", "level")} | {
            **{who: round(float(np.mean(row[who])), 2) for who in WHO},
            "away": round(float(np.mean(row["away"])), 1),
            **noticed([row], within),
        }
    shifts = []
    for name in dict.fromkeys(row["shift"] for row in rows):
        own = [row for row in rows if row["shift"] == name]
        shifts.append(over_levels(own, low, span))
        yield {"shift": name, "kind": own[0]["kind"], "levels": len(own), **shifts[-1]}
    for one in troubles:
        yield {
            **{name: one[name] for name in ("stall", "covered") if name in one},
            "lost_mean": round(float(np.mean(one["lost"])), 2),
            "lost_most": int(np.max(one["lost"])),
        }
    for kind, level in dict.fromkeys((row["kind"], row["level"]) for row in rows):
        own = [row for row in rows if (row["kind"], row["level"]) == (kind, level)]
        yield {"kind": kind, "level": level, **noticed(own, within)}
    if not shifts:
        return
    alarmed = sum(bool(one) for one in ordinary["guarded"]["alarms"])
    episodes = len(ordinary["guarded"]["alarms"])
    yield {
        "all_shifts": len(shifts),
        "episodes": len(rows[0]["guarded"]),
        "fallback_name": ordinary["fallback_name"],
        "random": round(low, 2),
        "ordinary": round(high, 2),
        "ordinary_guarded": round(float(np.mean(ordinary["guarded"]["returns"])), 2),
        **{who: round(float(np.mean([one[who] for one in shifts])), 4) for who in WHO},
        "short_worst": max(one["short"] for one in shifts),
        "false_alarms": f"{alarmed} of {episodes}",
    }


def over_levels(rows: list[dict[str, Any]], low: float, span: float) -> dict[str, Any]:
    """The means of one shift over its levels, as shares of the span, and how far the guarded one
    lies below the better of the others, with its interval."""
    returns = {who: (np.array([row[who] for row in rows]) - low) / span for who in WHO}  # [L, N]
    rng = np.random.default_rng(0)
    count = returns["guarded"].shape[1]
    drawn = rng.integers(count, size=(DRAWS, count))

    def short(means: Mapping[str, Any]) -> Any:
        return np.maximum(means["policy"], means["fallback"]) - means["guarded"]

    means = {who: one.mean() for who, one in returns.items()}
    draws = short({who: one.mean(0)[drawn].mean(1) for who, one in returns.items()})
    interval = np.quantile(draws, [0.05, 0.95])
    return {
        **{who: round(float(value), 4) for who, value in means.items()},
        "short": round(float(short(means)), 4),
        "interval": [round(float(one), 4) for one in interval],
    }


def noticed(rows: list[dict[str, Any]], within: int) -> dict[str, float]:
    """The share of the shifted episodes with an alarm soon after the onset, and with any."""
    first = [min(one, default=np.inf) for row in rows for one in row["delays"]]
    return {
        "caught": round(float(np.mean(np.array(first) < within)), 4),
        "noticed": round(float(np.mean(np.isfinite(first))), 4),
    }
