"""Play episodes with a trained agent: `python scripts/evaluate.py run=runs/demo episodes=20`."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("agents.apps.evaluate:evaluate_command", __file__, __doc__)
