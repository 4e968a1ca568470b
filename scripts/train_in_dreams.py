"""Train an actor for another reward in the dreams of a trained model: see agents/apps/reuse.py.

python scripts/train_in_dreams.py run=runs/demo control={spin: 1.0}
"""

import sys

from agents.apps.reuse import dreams_command

if __name__ == "__main__":
    sys.exit(dreams_command(print, sys.argv[1:]))
