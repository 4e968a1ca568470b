"""What an export folder holds, and whether it still does."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldmodel.config import RunError

MANIFEST, SUMS, FORMAT = "manifest.json", "SHA256SUMS", 2
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
TYPES = ("float32", "float64", "uint8", "bool", "int64")
MOST_NUMBERS = 1 << 24  # of one array of one robot
MOST_MANIFEST, MOST_FILE = 1 << 20, 1 << 32  # bytes


def seal(folder: Path) -> str:
    """Write the checksums of every file, the manifest's included; returns the folder's own, which
    names its whole content."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != SUMS)
    lines = [f"{_digest((folder / name).read_bytes())}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines))
    return _digest("".join(lines).encode())


class Export:
    """An export folder whose every file was checked: nothing missing, nothing changed, no name
    that leads outside.

    expected: what `seal` returned, where one knows it; without it a folder that somebody changed
    together with its checksums is not recognised.

    Raises RunError for a folder that is none, was changed, or is of a newer format.
    """

    def __init__(self, folder: str | Path, expected: str | None = None) -> None:
        self.folder = Path(folder)
        sums = self._read(SUMS, MOST_MANIFEST)
        self.digest = _digest(sums)
        if expected is not None and self.digest != expected:
            raise self.error(f"its checksum is {self.digest[:16]}..., not {expected[:16]}...")
        self.sums = self._sums(sums)
        self.manifest = self._manifest()
        for name in self.sums:
            self.file(name)

    def file(self, name: str) -> bytes:
        """The bytes of a file, checked as they are read."""
        if name not in self.sums:
            raise self.error(f"its checksums do not name {name!r:.100}")
        data = self._read(name, MOST_FILE)
        if _digest(data) != self.sums[name]:
            raise self.error(f"'{name}' was changed: its checksum is another")
        return data

    def _read(self, name: str, most: int) -> bytes:
        path = self.folder / name
        if path.is_symlink():
            raise self.error(f"'{name}' is a link")
        try:
            if path.stat().st_size > most:
                raise self.error(f"'{name}' is larger than {most:,} bytes")
            return path.read_bytes()
        except OSError as error:
            raise self.error(f"'{name}' cannot be read ({error.strerror})") from error

    def _sums(self, data: bytes) -> dict[str, str]:
        sums = {}
        for line in data.decode("utf-8", "replace").splitlines():
            digest, _, name = line.partition("  ")
            if not re.fullmatch(r"[0-9a-f]{64}", digest) or not NAME.fullmatch(name):
                raise self.error(f"{SUMS} holds a line that is no checksum: {line!r:.100}")
            sums[name] = digest
        return sums

    def _manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads(self.file(MANIFEST))
        except (ValueError, RecursionError) as error:
            raise self.error(f"{MANIFEST} is no JSON") from error
        found = manifest.get("format") if isinstance(manifest, Mapping) else None
        if found != FORMAT:
            raise self.error(f"its format is {found!r:.40}; this version reads {FORMAT}")
        problem = wrong_in(manifest, self.sums)
        if problem:
            raise self.error(f"{MANIFEST}: {problem}")
        return dict(manifest)

    def error(self, what: str) -> RunError:
        """What is wrong with this folder, and what to do."""
        return RunError(
            f"'{self.folder}' is not an export as it was written: {what}. Export the run again: "
            f"scripts/export.py run=RUN to={self.folder}"
        )


def wrong_in(manifest: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """What is wrong with a manifest, or "": whatever is used later is looked at here."""
    try:
        for name in ("about", "env", "graphs", "inputs", "outputs"):
            if not isinstance(manifest[name], Mapping):
                return f"'{name}' is {manifest[name]!r:.40}"
        predict = manifest["predict"]
        graphs = {**manifest["graphs"], **({} if predict is None else {"predict": predict})}
        for name, graph in graphs.items():
            if graph["file"] not in files:
                return f"the graph {name!r:.40} is in {graph['file']!r:.60}, which is no file here"
        if manifest["default"] not in manifest["graphs"]:
            return f"there is no graph {manifest['default']!r:.40}"
        for name, tensor in [*manifest["inputs"].items(), *manifest["outputs"].items()]:
            if not _is_shape(tensor["shape"]):
                return f"{name!r:.40} has the shape {tensor['shape']!r:.60}"
            if tensor["type"] not in TYPES:
                return f"{name!r:.40} has the type {tensor['type']!r:.40}"
        return _wrong_names(manifest) or _wrong_detector(manifest)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        return f"{type(error).__name__} {error}"[:200]


def _is_shape(shape: Any) -> bool:
    """["B", sizes ...] of an array that a robot could have."""
    sizes = shape[1:]
    whole = all(type(n) is int and 0 < n <= MOST_NUMBERS for n in sizes)
    return shape[0] == "B" and len(sizes) <= 8 and whole and math.prod(sizes) <= MOST_NUMBERS


def _wrong_names(manifest: Mapping[str, Any]) -> str:
    """Whether inputs and outputs are those of a step with these observations."""
    inputs, outputs = manifest["inputs"], manifest["outputs"]
    seen = {f"obs.{key}" for key in manifest["spec"]["obs"]}
    unknown = {name for name in inputs if name.startswith("obs.")} - seen
    if unknown:
        return f"the input {min(unknown)!r:.40} is no observation of its spec"
    state = {n[6:]: tensor for n, tensor in inputs.items() if n.startswith("state.")}
    after = {n[5:]: tensor for n, tensor in outputs.items() if n.startswith("next.")}
    if {"is_first", "sent"} - inputs.keys() or "action" not in outputs or state != after:
        return "its inputs and outputs are not those of a step"
    return ""


def _wrong_detector(manifest: Mapping[str, Any]) -> str:
    detector = manifest["detector"]
    if detector is None:
        return ""
    threshold, names = detector["threshold"], detector["names"]
    if type(threshold) is not float or not 0 < threshold < math.inf:
        return f"the threshold is {threshold!r:.40}"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "the names of the detector's parts are no list of names"
    outputs = manifest["outputs"]
    if outputs["score.value"]["shape"] != ["B"] or (
        outputs["score.parts"]["shape"] != ["B", len(names)]
    ):
        return "the score has not the shape that the detector's parts ask for"
    return ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
