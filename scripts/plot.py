"""Run and draw the figures of the Dyna family: `python scripts/plot.py figure=dyna_maze`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.studies.plot import plot_command

if __name__ == "__main__":
    raise SystemExit(plot_command(print, sys.argv[1:]))
