"""Run a deployed agent in its environment: `python scripts/deploy.py run=runs/demo shift=blur`."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("agents.deploy.cli:deploy_command", __file__, __doc__)
