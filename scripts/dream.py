"""See what a trained world model dreams: `python scripts/dream.py run=runs/demo`."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("agents.apps.dreams.cli:dream_command", __file__, __doc__)
