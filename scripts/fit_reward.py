"""Fit a new reward head on a trained world model.

python scripts/fit_reward.py run=runs/demo name=hang reward=my_rewards.py:hang
python scripts/fit_reward.py run=runs/demo list=true
python scripts/fit_reward.py run=runs/demo remove=hang
"""

from agents.apps.rewards.cli import fit_reward_command

if __name__ == "__main__":
    raise SystemExit(fit_reward_command(print))
