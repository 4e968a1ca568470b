"""Fit a run's detector of the unknown: `python scripts/fit_detector.py run=runs/demo`."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("agents.deploy.fit:fit_detector_command", __file__, __doc__)
