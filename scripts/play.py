"""Step into the dream of a trained world model: `python scripts/play.py run=runs/demo`."""

import sys

from agents.apps.play.cli import play_command

if __name__ == "__main__":
    raise SystemExit(play_command(print, sys.argv[1:]))
