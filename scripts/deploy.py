"""Run a deployed agent in its environment: `python scripts/deploy.py run=runs/demo shift=blur`."""

import sys

from agents.deploy.cli import deploy_command

if __name__ == "__main__":
    raise SystemExit(deploy_command(print, sys.argv[1:]))
