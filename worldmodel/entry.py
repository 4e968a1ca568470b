"""The one way into every command: `enter("module:function", __file__, __doc__)`.

A command is a function of `say`, which takes the lines that it prints, and of its words; it returns
an exit code. Here is what holds for all of them: names like `module:Class` are found in the folder
that the command was given in; text that a terminal cannot show is spelled out; Ctrl-C and SIGTERM
close what is open and say one line; what the system refuses (a name too long, a full disk) is one
line; a warning is its text, without the line of code that it came from; and a pipe that nobody
reads ends a command without noise.

Nothing heavy is imported before `enter` runs, so that all of it holds for the imports too.
"""

from __future__ import annotations

import codecs
import importlib
import io
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NoReturn, TextIO

from worldmodel import progress

Say = Callable[[str], None]
Command = Callable[[Say, Sequence[str]], int]

HELP = ("-h", "--help")
FULL_ERROR = "HYDRA_FULL_ERROR"
# Read once, because `compose.launch` sets it for Hydra.
WANTS_TRACEBACK = os.environ.get(FULL_ERROR) == "1"
PLAIN = "worldmodel.plain"  # an error handler of encodings
SPELLED = {"±": "+-", "…": "..."}
INTERRUPTED, UNREAD = 128 + signal.SIGINT, 128 + 13  # 13: SIGPIPE, which not every system has
REFUSED = 2
LONGEST = 200  # characters of what the system says


class OutputGone(BaseException):
    """Nobody reads what the command prints, as in `command | head -1`; like KeyboardInterrupt no
    Exception, so that nothing on the way takes it for a failure of its own."""


class Ended(BaseException):
    """SIGTERM; no SystemExit, which environments raise and their failures are caught with."""


def enter(command: str | Command, script: str, about: str | None) -> NoReturn:
    """Run a command with the words of the command line, and exit with its code.

    command: a function, or "module:function". script: the file that was started. about: what it
    says of itself, before the settings, where help is asked for.
    """
    codecs.register_error(PLAIN, _spelled)
    for stream in _pipes():
        stream.reconfigure(errors=PLAIN, line_buffering=True)
    signal.signal(signal.SIGTERM, _ask_to_end)
    warnings.showwarning = _warned
    try:
        with progress.shown() if os.environ.get("RANK", "0") == "0" else nullcontext():
            code = _run(command, Path(script).resolve().parent, about)
    except KeyboardInterrupt:
        code = INTERRUPTED
        _last_word("stopped by Ctrl-C.")
    except Ended:
        code = 128 + signal.SIGTERM
        _last_word("stopped by SIGTERM.")
    except OutputGone:
        code = UNREAD
    except OSError as error:
        code = UNREAD if isinstance(error, BrokenPipeError) and _unread() else REFUSED
        if code == REFUSED:
            _refused(error)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to do but to end
    _drop_output()
    sys.exit(code)


def say(text: str) -> None:
    """Print a line. Raises OutputGone where nobody reads it."""
    progress.clear()
    try:
        print(text)
    except BrokenPipeError as error:
        raise OutputGone from error
    progress.said()


def see_working_folder() -> None:
    """Let `module:Class` names find modules in the folder that the command was given in; behind
    all others, so that no file of that folder stands in for one of a library."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def _run(command: str | Command, folder: Path, about: str | None) -> int:
    """The exit code of a command whose script lies in `folder`."""
    words = sys.argv[1:]
    wrong = _unusable(words)
    if wrong:
        say(f"error: {wrong}")
        return REFUSED
    if any(word in HELP for word in words) and about:
        say(about.strip() + "\n")
    # The other scripts are no modules; the folder above, which has them as a package, is in front
    # until they are imported, and then gives way to a package `scripts` of the user's.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != folder]
    sys.path.insert(0, str(folder.parent))
    try:
        call = _imported(command) if isinstance(command, str) else command
    except ModuleNotFoundError as error:
        say(f"error: {error}. Run `make setup`; `make doctor` says what else is missing.")
        return 1
    sys.path.remove(str(folder.parent))
    see_working_folder()
    return call(say, words)


def _imported(name: str) -> Command:
    module, _, function = name.partition(":")
    found: Command = getattr(importlib.import_module(module), function)
    return found


def _unusable(words: Sequence[str]) -> str:
    """Why a command cannot begin here, with these words; "" where it can."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return "The folder that the command was given in is gone. Change to one that is there."
    for word in words:
        if word.encode("utf-8", "ignore").decode() != word:
            return f"'{word}' holds bytes that are no text in UTF-8. Rename what it names."
    return ""


def _ask_to_end(number: int, frame: object) -> None:
    raise Ended


def _warned(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: TextIO | None = None, line: str | None = None,
) -> None:  # fmt: skip
    """Show a warning; those for programmers with their place."""
    text = f"warning: {message}\n"
    if category is not UserWarning or WANTS_TRACEBACK:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    progress.clear()
    with suppress(OSError, AttributeError):  # nobody reads it, or it is closed (None)
        (file or sys.stderr).write(text)
    progress.said()


def _refused(error: OSError) -> None:
    """One line for what the system refused; on standard error where that is the output itself."""
    if WANTS_TRACEBACK:
        raise error
    text = str(error)
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    line = f"error: {text}. {FULL_ERROR}=1 shows where."
    try:
        print(line, flush=True)
    except OSError:
        _replace_output(sys.stdout.fileno())
        print(line, file=sys.stderr, flush=True)


def _last_word(text: str) -> None:
    """One line, by the first of several ranks, and none where nobody reads it."""
    if os.environ.get("RANK", "0") == "0":
        try:
            print(text, flush=True)
        except BrokenPipeError:
            _drop_output()


def _unread() -> list[int]:
    """Standard output or error, where it is a pipe whose reader is gone."""
    if not hasattr(select, "poll"):
        return []
    poll = select.poll()
    for stream in _pipes():
        poll.register(stream, 0)  # errors alone
    return [number for number, event in poll.poll(0) if event & select.POLLERR]


def _drop_output() -> None:
    """Send what is still in the buffers nowhere, so that Python does not complain at its end."""
    for number in _unread():
        _replace_output(number)


def _replace_output(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def _pipes() -> list[io.TextIOWrapper]:
    """Standard output and error, as far as they are files."""
    return [one for one in (sys.stdout, sys.stderr) if isinstance(one, io.TextIOWrapper)]


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """Characters that an encoding lacks: written out, or as an escape."""
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start : error.end]
    text = "".join(SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in part)
    return text, error.end
