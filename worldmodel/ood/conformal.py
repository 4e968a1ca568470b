"""A threshold that new normal episodes cross as seldom as was asked.

Scores of one episode hang together, so that one number is taken from each: its maximum. Where
calibration episodes and a new one are exchangeable, the new maximum is equally likely to have any
rank among them, whatever its distribution. With n episodes and the k-th smallest maximum as
threshold,

    P(new maximum > threshold) <= (n + 1 - k) / (n + 1)          over episodes and calibrations

This holds on average over calibrations: one that was lucky lets more alarms through. The rate that
one calibration leads to follows Beta(n + 1 - k, k), so that with fewer alarms asked of the
episodes at hand, the rate holds with a given confidence.

Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005), and Vovk, "Conditional
Validity of Inductive Conformal Predictors" (ACML 2012), proposition 2a.
"""

from __future__ import annotations

import math

import numpy as np

from worldmodel.config import ConfigError


def episodes_needed(rate: float, confidence: float = 0.0) -> int:
    """The fewest calibration episodes that can promise `rate` false alarms per episode.

    confidence: with which the rate holds for this one calibration; 0: on average over them. There
    n + 1 >= 1 / rate is needed, else (1 - rate) ** n <= 1 - confidence.
    """
    _check(rate, confidence)
    average = math.ceil(1 / rate - 1e-9) - 1
    if not confidence:
        return average
    return max(average, math.ceil(math.log(1 - confidence) / math.log(1 - rate) - 1e-9))


def rank(count: int, rate: float, confidence: float = 0.0) -> int:
    """k, from 1 to n: which of n sorted maxima is the threshold.

    Raises ConfigError where n are too few; it says how many are needed.
    """
    needed = episodes_needed(rate, confidence)
    if count < needed:
        surely = f", with {confidence:.0%} confidence" if confidence else ""
        raise ConfigError(
            f"{count} held-out episodes cannot promise at most {rate:g} false alarms per "
            f"episode{surely}: at least {needed} are needed. Give more episodes, or a higher rate"
            f"{' or a lower confidence' if confidence else ''}."
        )
    chosen = math.ceil((count + 1) * (1 - rate) - 1e-9)
    while confidence and chosen < count and _chance(count, chosen, rate) < confidence:
        chosen += 1
    return chosen


def threshold(maxima: np.ndarray, rate: float, confidence: float = 0.0) -> float:
    """The smallest of the episodes' maxima [n] that new episodes exceed at no more than `rate`.

    Raises ConfigError where there are too few episodes, ValueError where one is not finite.
    """
    if not np.isfinite(maxima).all():
        raise ValueError("A calibration episode has a score that is not finite.")
    return float(np.sort(maxima)[rank(len(maxima), rate, confidence) - 1])


def _chance(count: int, chosen: int, rate: float) -> float:
    """How likely one calibration with the `chosen`-th maximum holds the rate: that fewer than
    `chosen` of n uniform numbers lie below 1 - rate."""
    below = 0.0
    for hits in range(chosen):
        logs = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
        below += math.exp(logs + hits * math.log1p(-rate) + (count - hits) * math.log(rate))
    return below


def _check(rate: float, confidence: float) -> None:
    if not 0 < rate < 1:
        raise ConfigError(f"false_alarm_rate is {rate}; allowed: above 0 and below 1.")
    if not 0 <= confidence < 1:
        raise ConfigError(f"confidence is {confidence}; allowed: 0 to below 1.")
