"""Measure, one JSON line for each figure: `python scripts/bench.py what=dyna`."""

import sys

from agents.studies.bench import bench_command

if __name__ == "__main__":
    raise SystemExit(bench_command(print, sys.argv[1:]))
