"""What an update asks of its device, on one that has no numbers: reading any of them fails."""

from __future__ import annotations

import pytest
import torch

from agents.dreamer import Dreamer, DreamerConfig
from tests.model_batches import SPECS, random_batch, tiny

META = torch.device("meta")


@pytest.mark.parametrize(
    ("spec", "gradient"),
    [("image", "reinforce"), ("image", "dynamics"), ("image", "quieter"), ("mixed", "reinforce")],
)
@pytest.mark.parametrize("latent", ["categorical", "gaussian"])
def test_an_update_reads_nothing_until_it_is_done(spec: str, latent: str, gradient: str) -> None:
    """A GPU that is asked for a number on the way idles, and the update could not be recorded."""
    model = tiny(latent=latent, centre_images=True)
    config = DreamerConfig(
        batch_size=3, batch_length=5, horizon=3, model=model, actor_gradient=gradient
    )
    agent = Dreamer(SPECS[spec], config, META)
    batch = random_batch(SPECS[spec]).to(META)
    metrics, states, step = agent._learn(batch)
    found = [*metrics.values(), *states, *step, *agent.model.pack(states).values()]
    assert {x.device for x in found} == {META}
    with pytest.raises(RuntimeError, match="meta"):
        agent.optim.check(step)  # reads whether all was finite: what the test relies on
