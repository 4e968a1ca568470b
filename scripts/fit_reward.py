"""Fit a new reward head on a trained world model.

python scripts/fit_reward.py run=runs/demo name=hang reward=my_rewards.py:hang
python scripts/fit_reward.py run=runs/demo list=true
python scripts/fit_reward.py run=runs/demo remove=hang
"""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("agents.apps.rewards.cli:fit_reward_command", __file__, __doc__)
