"""A folder that is replaced is never seen in parts."""

import subprocess
import sys
from pathlib import Path

import pytest

from worldmodel.atomic import replaced


def test_the_new_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with replaced(tmp_path / "a") as fresh:
            (fresh / text).write_text(text)
            assert (tmp_path / "a" / "old").exists() == (text == "new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_after_an_error_everything_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")

    def interrupted() -> None:
        with replaced(tmp_path / "a") as fresh:
            (fresh / "new").write_text("half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_left_behind_is_removed_by_the_next(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for word in ("new", "old"):
        (tmp_path / f".a.{word}-{dead.pid}").mkdir()
    with replaced(tmp_path / "a") as fresh:
        assert (tmp_path / f".a.old-{dead.pid}").is_dir()  # all that there is of it
        (fresh / "new").write_text("new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    with replaced(tmp_path / "a"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from worldmodel.atomic import replaced\n"
        "for i in range(200):\n"
        "    with replaced(pathlib.Path(sys.argv[1])) as fresh:\n"
        "        for name in 'bc': (fresh / name).write_text(sys.argv[2])\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a"), n]) for n in "12"]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len({(tmp_path / "a" / name).read_text() for name in "bc"}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
