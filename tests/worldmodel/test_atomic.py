"""A folder that is replaced is never seen in parts."""

import subprocess
import sys
from pathlib import Path

import pytest

from worldmodel.atomic import replaced, replaced_file


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


def test_a_file_has_a_name_of_its_own_in_each_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from worldmodel.atomic import replaced_file\n"
        "for i in range(400):\n"
        "    with replaced_file(pathlib.Path(sys.argv[1])) as fresh:\n"
        "        with fresh.open('w') as text:\n"
        "            for _ in range(50): print(sys.argv[2], end='', file=text, flush=True)\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a.b"), n]) for n in "12"]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "a.b").read_text() in ("1" * 50, "2" * 50)
    (tmp_path / f".a.new-{both[0].pid}.b").write_text("half of")  # as if it had been killed
    with replaced_file(tmp_path / "a.b") as fresh:
        fresh.write_text("3")
    assert [path.name for path in tmp_path.iterdir()] == ["a.b"]
