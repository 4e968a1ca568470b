"""Export a trained agent as graphs: `python scripts/export.py run=runs/demo`."""

import sys

from agents.deploy.cli import export_command

if __name__ == "__main__":
    raise SystemExit(export_command(print, sys.argv[1:]))
