"""What a user wrote, by its name: `module:attribute` or `folder/file.py:attribute`."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from .config import EnvError, unknown


def found(name: str, what: str) -> Any:
    """The callable behind a name. what: a word for it in errors ("function", "class").

    Raises EnvError where there is none of that name.
    """
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute:
        raise EnvError(f"'{name}' does not name a {what}. Write module:{what} or file.py:{what}.")
    module = _file(where, name, what) if where.endswith(".py") else _module(where, name, what)
    value = getattr(module, attribute, None)
    if value is None:
        own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise unknown(f"{what} in '{where}'", attribute, own)
    if not callable(value):
        raise EnvError(f"'{name}' is a {type(value).__name__}, not a {what}.")
    return value


def _module(where: str, name: str, what: str) -> Any:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and not (where + ".").startswith(error.name + "."):
            raise EnvError(
                f"The module of '{name}' needs '{error.name}', which is not installed."
            ) from error
        raise EnvError(
            f"There is no module '{where}' for '{name}'. It must be importable from the folder "
            f"that the command is given in; a file may be named too, as in file.py:{what}."
        ) from error
    except Exception as error:
        raise EnvError(f"The module of '{name}' cannot be imported: {error!r}.") from error


def _file(where: str, name: str, what: str) -> Any:
    path = Path(where)
    if not path.is_file():
        raise EnvError(f"There is no file '{where}' for '{name}' (looked in '{Path.cwd()}').")
    spec = importlib.util.spec_from_file_location(f"{what}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise EnvError(f"The file of '{name}' cannot be run: {error!r}.") from error
    return module
