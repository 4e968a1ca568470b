"""Train an actor for another reward in the dreams of a trained model: see agents/apps/reuse.py.

python scripts/train_in_dreams.py run=runs/demo control={spin: 1.0}
"""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("agents.apps.reuse:dreams_command", __file__, __doc__)
