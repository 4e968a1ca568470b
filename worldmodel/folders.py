"""Folders that a command will write to, checked before it begins its work."""

from __future__ import annotations

import tempfile
from pathlib import Path

from worldmodel.atomic import is_full
from worldmodel.config import ConfigError


def make_folder(folder: Path, word: str) -> Path:
    """The folder, made where it is not there yet, once a file could be written to it.

    word: the setting that names another one, for the ConfigError where that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if is_full(error):
            raise
        why = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise ConfigError(
            f"'{folder}' cannot be written to ({why}). Give another {word}=..."
        ) from error
    return folder
