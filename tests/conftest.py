"""One thread for every test: models as small as theirs lose more time to waking threads than
threads save."""

import torch

torch.set_num_threads(1)
