"""Measure, one JSON line for each figure: `python scripts/bench.py what=dyna`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.studies.bench import bench_command

if __name__ == "__main__":
    raise SystemExit(bench_command(print, sys.argv[1:]))
