"""Step into the dream of a trained world model: `python scripts/play.py run=runs/demo`."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("agents.apps.play.cli:play_command", __file__, __doc__)
