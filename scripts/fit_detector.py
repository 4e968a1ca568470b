"""Fit a run's detector of the unknown: `python scripts/fit_detector.py run=runs/demo`."""

import sys

from agents.deploy.fit import fit_detector_command

if __name__ == "__main__":
    raise SystemExit(fit_detector_command(print, sys.argv[1:]))
