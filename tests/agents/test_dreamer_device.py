"""What an update asks of its device, on one that has no numbers: reading any of them fails."""

from __future__ import annotations

import pytest
import torch

from agents.dreamer import Dreamer, DreamerConfig
from tests.model_batches import SPECS, random_batch, tiny

META = torch.device("meta")


@pytest.mark.parametrize("latent", ["categorical", "gaussian"])
@pytest.mark.parametrize("spec", ["image", "mixed"])
def test_an_update_waits_for_its_device_once(
    spec: str, latent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks whether all is finite, before weights move. A GPU that is asked more often idles."""
    model = tiny(latent=latent, centre_images=True)
    config = DreamerConfig(batch_size=3, batch_length=5, horizon=3, model=model)
    agent = Dreamer(SPECS[spec], config, META)
    asked = []

    def isfinite(x: torch.Tensor) -> torch.Tensor:
        asked.append(x.device)
        return torch.tensor(True)

    monkeypatch.setattr(torch, "isfinite", isfinite)
    metrics, states = agent.train_on(random_batch(SPECS[spec]).to(META))
    assert asked == [META]
    assert {x.device for x in (*metrics.values(), states.deter, states.stoch)} == {META}
    with pytest.raises(RuntimeError, match="meta"):
        float(metrics["loss/total"])  # what the test relies on
