"""Train an agent: `python scripts/train.py [agent=...] [experiment=...] [key=value ...]`."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("agents.run.cli:train_command", __file__, __doc__)
