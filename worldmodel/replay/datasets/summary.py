"""What was found in a recording, as a table by which a person sees whether it was understood."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from worldmodel.replay.datasets.align import Aligner
from worldmodel.replay.datasets.recording import Episode


@dataclass
class Summary:
    """Counts over all episodes, and how they were read. frames: the first of each image key."""

    name: str
    kind: str
    lengths: list[int] = field(default_factory=list)
    single: int = 0  # episodes of one step
    terminated: int = 0
    low: float = np.inf
    high: float = -np.inf
    total: float = 0.0
    alignment: str = ""
    ends: str = ""
    actions: str = ""
    observed: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    frames: dict[str, np.ndarray] = field(default_factory=dict)

    def count(self, episode: Episode, rows: dict[str, np.ndarray]) -> None:
        """Note one episode, and its rows as the replay takes them."""
        self.lengths.append(len(episode))
        self.terminated += episode.terminated
        self.total += float(rows["reward"].sum())
        self.low = min(self.low, float(rows["reward"][1:].min()))
        self.high = max(self.high, float(rows["reward"][1:].max()))
        for key in episode.obs:
            if key in rows and rows[key].ndim == 4 and key not in self.frames:
                self.frames[key] = rows[key][0]

    def align(self, aligner: Aligner) -> None:
        """Take over how episodes were aligned, and what that costs."""
        self.alignment, self.ends = aligner.describe(), aligner.ends
        if aligner.lost:
            self.warnings.append(
                f"the last step of each episode is left out, {aligner.lost_ends} of them terminal, "
                f"with rewards of {aligner.lost_reward:.4g} in all: nobody recorded where it led"
            )
        if aligner.repeated:
            self.warnings.append(
                f"{aligner.repeated} episodes go on after a flag of their end; the last row counts"
            )
        if aligner.doubt:
            self.warnings.append(
                "most episodes begin with a reward of 0, which is rare elsewhere: rows of a vector "
                "environment of gymnasium? Then say offline_alignment=next_step"
            )
        single = sum(length == 1 for length in self.lengths)
        if single and single < len(self.lengths):
            self.warnings.append(
                f"{single} episodes have a single step; where flags repeat at the end of an "
                "episode, number the episodes (a column `episode`)"
            )

    def lines(self) -> list[str]:
        """The table, a line each."""
        count, steps = len(self.lengths), sum(self.lengths)
        span = f"{min(self.lengths):,} to {max(self.lengths):,}"
        if min(self.lengths) == max(self.lengths):
            span = f"{self.lengths[0]:,}"
        ends = f"{self.terminated:,} terminated, {count - self.terminated:,} cut off"
        rows = [
            ("alignment", self.alignment),
            ("ends", f"{ends} ({self.ends})" if self.ends else ends),
            ("rewards", f"from {self.low:.4g} to {self.high:.4g}, {self.total / count:.4g} an "
             "episode"),
            ("actions", self.actions),
            *(("observed", line) for line in self.observed),
            *(("not used", f"{name} ({why})") for name, why in self.unused.items()),
            *(("warning", line) for line in self.warnings),
        ]  # fmt: skip
        out = [
            f"dataset: {self.name} ({self.kind}): {count:,} episodes of {span} steps, {steps:,} "
            "in all"
        ]
        return out + [f"  {label:>9}: {text}" for label, text in rows]

    def picture(self) -> np.ndarray | None:
        """The first frames of all image keys side by side, uint8 [H, W, 3]; None without any."""
        from worldmodel.log import as_rgb, enlarged

        frames = [enlarged(as_rgb(frame)) for frame in self.frames.values()]
        if not frames:
            return None
        height = max(frame.shape[0] for frame in frames)
        padded = [np.pad(frame, ((0, height - frame.shape[0]), (0, 8), (0, 0))) for frame in frames]
        return np.concatenate(padded, 1)[:, :-8]
