"""What a run shows on its way, when it is due: metrics, evaluations, films of dreams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents.run import report
from agents.run.config import Counters, crossed
from agents.run.progress import Progress

if TYPE_CHECKING:
    from agents.run.trainer import Trainer


def show(trainer: Trainer, before: Counters, bar: Progress) -> None:
    """The line of metrics, the evaluation and the film that are due since `before`; rank 0 alone
    makes them, and the others wait."""
    settings, ranks = trainer.config, trainer.ranks
    old, new = before.updates if settings.offline else before.agent_steps, trainer.clock

    def due(every: int) -> bool:
        return crossed(old, new, every)

    if due(settings.log_every):
        trainer.settle()
        values = report.metrics(trainer)
        if ranks.first:
            trainer.log.scalars(new, values)
    evaluates = settings.has_env and not trainer.finished and due(settings.eval_every)
    films = due(settings.video_every)
    if evaluates or films:
        ranks.all_or_none(lambda: _look(trainer, bar, evaluates, films) if ranks.first else None)


def _look(trainer: Trainer, bar: Progress, evaluates: bool, films: bool) -> None:
    now = trainer.clock
    if evaluates:
        result = trainer.evaluate(trainer.config.eval_episodes)
        scores = {"eval/return": result.mean, "eval/return_std": result.std}
        trainer.log.scalars(now, {**scores, **report.progress(trainer.counters)})
        bar.say(
            f"{bar.unit} {now:,}: evaluation {result.mean:.1f} ± {result.std:.1f} over "
            f"{len(result.returns)} episodes"
        )
    if films and trainer.ready:
        report.film_dream(trainer)
