"""Play episodes with a trained agent: `python scripts/evaluate.py run=runs/demo episodes=20`."""

from agents.run.cli import evaluate_command

if __name__ == "__main__":
    raise SystemExit(evaluate_command(print))
