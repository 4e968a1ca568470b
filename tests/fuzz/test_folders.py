"""Folders that somebody sends: LeRobot's tables and what its info.json says, imitation's tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from tests.fuzz.common import JSON, altered, cases, damaged, ours
from tests.fuzz.test_datasets import reads
from tests.worldmodel.test_dataset_sources import imitation, lerobot
from worldmodel.replay.datasets import Convention, Dataset


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sent")
    lerobot(root / "robot", "v2.1", films=False)
    imitation(root / "imitation")
    return root


@pytest.mark.parametrize(
    ("folder", "pattern"), [("robot", "**/*.parquet"), ("imitation", "*.arrow")]
)
def test_damaged_tables(sent: Path, folder: str, pattern: str) -> None:
    table = sorted((sent / folder).glob(pattern))[0]
    whole = table.read_bytes()

    @cases(40, 300)
    @given(damaged(whole))
    def fuzz(content: bytes) -> None:
        table.write_bytes(content)
        reads(sent / folder, Convention(), f"datasets, {folder} tables")

    fuzz()
    table.write_bytes(whole)


def test_what_info_json_says(sent: Path, tmp_path: Path) -> None:
    root = tmp_path / "robot"
    shutil.copytree(sent / "robot", root)
    info: dict[str, Any] = json.loads((root / "meta" / "info.json").read_text())
    camera = {"dtype": "video", "shape": [3, 32, 32], "names": ["channels", "h", "w"]}
    info["features"]["observation.images.top"] = camera

    @cases(15, 300)
    @given(altered(info, JSON))
    def fuzz(changed: Any) -> None:
        (root / "meta" / "info.json").write_text(json.dumps(changed))
        with ours("datasets, info.json"):
            Dataset(str(root))

    fuzz()
