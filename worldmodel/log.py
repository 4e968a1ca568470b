"""What a run leaves behind to look at: TensorBoard, metrics.jsonl, videos and pictures."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.atomic import replaced_file

METRICS = "metrics.jsonl"
EVENTS = "events.out.tfevents.*"
GIF_SECONDS = 600.0  # a GIF holds no frame for longer than 655 s, and frames that are alike are one
LEAST_SPACE = 1 << 20  # bytes; a disk with less is full to a film
SMALLEST_SIDE = 256  # pixels; smaller pictures are enlarged so that a person can see them


class Means:
    """Running means of metrics, on the devices where these were computed: only `read` waits for
    a device."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Count one value (a number or scalar tensor) per name."""
        for name, value in metrics.items():
            value = value.detach() if isinstance(value, Tensor) else float(value)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means since the last reading, and start over."""
        tensors = {k: v for k, v in self._sums.items() if isinstance(v, Tensor)}
        values = {k: v for k, v in self._sums.items() if not isinstance(v, Tensor)}
        if tensors:
            flat = torch.stack([v.reshape(()).double().cpu() for v in tensors.values()]).tolist()
            values.update(zip(tensors, flat, strict=True))
        means = {k: v / self._counts[k] for k, v in values.items()}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """What was gathered since the last reading, for a checkpoint."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


class RunLog:
    """Writes scalars and pictures of one run, stamped with its agent steps.

    folder: of the run. position: what `position()` said at the checkpoint that the run goes on
    from: everything that was written later (the process was killed) is dropped, so that no line
    is there twice. None begins a log, without what a run killed before its first checkpoint left.
    """

    def __init__(self, folder: Path, position: Mapping[str, int] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        cut_back(self.folder, position or {})
        self._file = (self.folder / METRICS).open("a")
        self._board = SummaryWriter(str(self.folder))

    def position(self) -> dict[str, int]:
        """Bytes of every log file, all on the disk by now."""
        self.flush()
        return log_sizes(self.folder)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and one point per TensorBoard curve. A value that is not
        finite is written as null, because JSON has no word for it."""
        line: dict[str, Any] = {"step": step}
        for name, value in values.items():
            line[name] = value if math.isfinite(value) else None
            self._board.add_scalar(name if "/" in name else f"run/{name}", value, step)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A uint8 picture [H, W, C] for TensorBoard."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def video(self, step: int, name: str, frames: Sequence[np.ndarray], fps: int = 15) -> None:
        """An mp4 of uint8 frames [H, W, C] under videos/, and a moving picture in TensorBoard."""
        path = self.folder / "videos" / f"{name.replace('/', '_')}_{step:09d}.mp4"
        write_video(path, frames, fps)
        self._moving_picture(step, name, frames, fps)

    def _moving_picture(self, step: int, name: str, frames: Sequence[np.ndarray], fps: int) -> None:
        # TensorBoard shows animated GIFs as images; its own add_video needs one more package.
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        height, width = frames[0].shape[:2]
        picture = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=gif(frames, fps)
        )
        summary = Summary(value=[Summary.Value(tag=name, image=picture)])
        self._board._get_file_writer().add_summary(summary, step)

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        self._board.close()


def cut_back(folder: Path, position: Mapping[str, int]) -> None:
    """Bring the log files of a folder back to the bytes that they had; what is new goes."""
    for path in _log_files(folder):
        size = position.get(path.name, 0)
        if size == 0:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)


def log_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every log file of a folder."""
    return {path.name: path.stat().st_size for path in _log_files(folder)}


def _log_files(folder: Path) -> list[Path]:
    return [p for p in (folder / METRICS, *sorted(folder.glob(EVENTS))) if p.is_file()]


def as_rgb(frame: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] with any number of channels as [H, W, 3]: one is repeated, of more than
    three the last three are shown (the newest of a stack), two get an empty third."""
    channels = frame.shape[-1]
    if channels == 1:
        return np.repeat(frame, 3, -1)
    if channels == 2:
        return np.concatenate([frame, np.zeros_like(frame[..., :1])], -1)
    return frame[..., -3:]


def enlarged(frame: np.ndarray, smallest: int = SMALLEST_SIDE) -> np.ndarray:
    """The frame with every pixel repeated until its shorter side has `smallest` pixels."""
    times = max(1, math.ceil(smallest / min(frame.shape[:2])))
    return frame.repeat(times, 0).repeat(times, 1)


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int = 15) -> None:
    """An mp4 of uint8 frames [H, W, C], enlarged to be visible.

    Raises ValueError without frames.
    """
    import imageio.v2 as imageio

    if not len(frames):
        raise ValueError(f"No frames for the video '{path}'.")
    with replaced_file(path) as fresh:
        out: Any = imageio.get_writer(
            fresh, fps=fps, codec="libx264", macro_block_size=16, pixelformat="yuv420p",
            ffmpeg_log_level="quiet",
        )  # fmt: skip
        try:
            with out:
                for frame in frames:
                    out.append_data(enlarged(as_rgb(frame)))
            if b"moov" not in fresh.read_bytes():  # ffmpeg failed after it had read all frames
                raise OSError(f"ffmpeg did not finish the video '{path}'.")
        except OSError as error:  # of a pipe to ffmpeg, which does not say why it ended
            if shutil.disk_usage(fresh.parent).free > LEAST_SPACE:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def gif(frames: Sequence[np.ndarray], fps: int = 15) -> bytes:
    """An animated GIF of uint8 frames [H, W, C]: their first ten minutes, at the given rate."""
    import imageio.v2 as imageio

    shown = [as_rgb(frame) for frame in frames[: round(GIF_SECONDS * fps)]]
    out = io.BytesIO()
    imageio.mimwrite(out, shown, format="gif", duration=1000 / fps, loop=0)  # type: ignore[arg-type]
    return out.getvalue()


def write_picture(path: Path, picture: np.ndarray) -> None:
    """A PNG of a uint8 picture [H, W, 3]."""
    import imageio.v2 as imageio

    with replaced_file(path) as fresh:
        fresh.write_bytes(imageio.imwrite("<bytes>", picture, format="png"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new, never a part."""
    with replaced_file(path) as fresh:
        fresh.write_text(json.dumps(value, indent=2) + "\n")


def write_tensors(path: Path, value: Any) -> None:
    """Tensors, and what holds them, as PyTorch saves them. Its error says where the disk is full
    (`is_full`), which it forgets where it opens the file itself."""
    with replaced_file(path) as fresh, fresh.open("wb") as file:
        torch.save(value, file)
