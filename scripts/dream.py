"""See what a trained world model dreams: `python scripts/dream.py run=runs/demo`."""

import sys

from agents.apps.dreams.cli import dream_command

if __name__ == "__main__":
    raise SystemExit(dream_command(print, sys.argv[1:]))
