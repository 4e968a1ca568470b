"""Constructors that raise: one line that says which, why, and what to give."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from .config import EnvConfig, EnvError
from .process_state import kept_process_state
from .wrappers import error_words

NOTHING: Mapping[str, inspect.Parameter] = {}


def made(
    config: EnvConfig,
    make: Callable[[], Any],
    parameters: Mapping[str, inspect.Parameter] = NOTHING,
) -> Any:
    """What a constructor makes. Whatever it raises becomes an EnvError that names it and, where
    one is missing, the argument to give. parameters: those that it takes, as far as is known."""
    try:
        with kept_process_state():
            return make()
    except EnvError:
        raise
    except (Exception, SystemExit) as error:
        missing = [n for n in parameters if isinstance(error, TypeError) and f"'{n}'" in str(error)]
        missing = [name for name in missing if name not in config.kwargs]
        give = f" It was given {dict(config.kwargs)!r:.200}." if config.kwargs else ""
        if missing:
            give = f" Give it: {' '.join(f'env.kwargs.{name}=...' for name in missing)}"
        raise EnvError(
            f"Could not make {config.id}: {error_words(error)}{place_of(error)}.{give}"
        ) from error


def parameters_of(target: Any) -> Mapping[str, inspect.Parameter]:
    """What a callable takes; nothing where it does not say."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return NOTHING


def place_of(error: BaseException) -> str:
    """Where an error was raised, in parentheses; nothing where that was our own call."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    file = trace.tb_frame.f_code.co_filename
    if os.path.dirname(file) == os.path.dirname(__file__) or not os.path.isfile(file):
        return ""
    return f" ({os.path.basename(file)}, line {trace.tb_lineno})"
