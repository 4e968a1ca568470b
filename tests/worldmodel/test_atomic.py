"""A folder that is replaced is never seen in parts."""

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
    left = tmp_path / ".a.new"
    left.mkdir()
    (left / "half").write_text("half of")
    with replaced(tmp_path / "a") as fresh:
        (fresh / "new").write_text("new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
