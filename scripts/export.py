"""Export a trained agent as graphs: `python scripts/export.py run=runs/demo`."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("agents.deploy.cli:export_command", __file__, __doc__)
