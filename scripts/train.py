"""Train an agent: `python scripts/train.py [agent=...] [experiment=...] [key=value ...]`."""

from agents.run.cli import train_command

if __name__ == "__main__":
    raise SystemExit(train_command(print))
