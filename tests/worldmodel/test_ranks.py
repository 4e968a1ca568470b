"""Two ranks are one: the same words everywhere, and the gradient of both halves of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agents.dreamer import Dreamer, DreamerConfig
from agents.run import shares
from tests.model_batches import CONTINUOUS, IMAGE, VECTOR, random_batch, spec_of, tiny
from tests.rank_pairs import together
from worldmodel import distributions
from worldmodel.accel.ranks import FailedElsewhere, RankLost, Ranks
from worldmodel.config import ConfigError, RunError
from worldmodel.models.ensemble import EnsembleConfig
from worldmodel.optim import LaProp, OptimConfig
from worldmodel.types import Batch

SPEC = spec_of(CONTINUOUS, image=IMAGE, v=VECTOR)
ROWS = 4  # of the joined batch
UPDATES = 3
LIMIT = 0.01  # of the range of returns


def fails(error: Exception) -> Any:
    raise error


def raised(call: Any) -> tuple[str, str]:
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def speak(rank: int) -> dict[str, Any]:
    ranks = Ranks.join()
    told: dict[str, Any] = {"is": (ranks.rank, ranks.size, ranks.first)}
    value = torch.tensor([1.0, 3.0 * rank])
    told["gathered"] = ranks.all_gather(value).tolist()
    ranks.all_reduce_mean(value)
    told["mean"] = value.tolist()
    ranks.broadcast([weights := torch.full((2,), float(rank + 7))])
    told["broadcast"] = weights.tolist()
    told["sums"] = ranks.sums(rank, 1, 2**40 + rank)
    told["objects"] = ranks.gather_objects({"rank": rank, "value": torch.tensor(rank)})
    told["agree"] = ranks.agree(rank == 1), ranks.agree(False)
    told["all"] = ranks.all_or_none(lambda: rank)
    setting, bug = ConfigError("steps is 0."), TypeError("a bug")
    told["setting"] = raised(
        lambda: ranks.all_or_none(lambda: fails(setting) if rank == 1 else None)
    )
    told["run"] = raised(lambda: ranks.all_or_none(lambda: fails(RunError(f"rank {rank}'s"))))
    told["bug"] = raised(lambda: ranks.all_or_none(lambda: fails(bug) if rank == 1 else None))
    # A loss that is not finite though its gradient is.
    module = torch.nn.Linear(2, 1)
    optim = LaProp([("module", module)], OptimConfig())
    optim.ranks = ranks
    loss = module.weight.sum() + (torch.inf if rank == 1 else 0.0)
    told["loss"] = raised(lambda: optim.step(loss))[0]
    ranks.barrier()
    if rank == 1:
        ranks.close()
        return told
    told["lost"] = raised(lambda: [ranks.barrier() for _ in range(3)])
    return told


def test_all_ranks_hear_the_same() -> None:
    first, second = together(speak)
    assert (first.pop("is"), second.pop("is")) == ((0, 2, True), (1, 2, False))
    for told in (first, second):
        assert told["gathered"] == [1, 0, 1, 3]
        assert told["mean"] == [1, 1.5]
        assert told["broadcast"] == [7, 7]
        assert told["sums"] == [1, 2, 2**41 + 1]
        assert [int(one["value"]) for one in told["objects"]] == [0, 1]
        assert told["agree"] == (True, False)
        assert told["loss"] == "FloatingPointError"
    assert (first["all"], second["all"]) == (0, 1)
    # Rank 0 says what is wrong, wherever it is; a bug is said where it is, and ends all.
    assert first["setting"] == ("ConfigError", "Rank 1: steps is 0.")
    assert second["setting"] == (FailedElsewhere.__name__, "steps is 0.")
    assert first["run"] == ("RunError", "rank 0's")
    assert second["run"] == (FailedElsewhere.__name__, "rank 0's")
    assert first["bug"] == (RankLost.__name__, "Rank 1: TypeError: a bug")
    assert second["bug"] == ("TypeError", "a bug")
    assert first["lost"][0] == RankLost.__name__
    assert "lost the others" in first["lost"][1]


def test_alone_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks.join()
    assert (ranks.rank, ranks.size, ranks.first, ranks.orphaned) == (0, 1, True, False)
    value = torch.ones(2)
    assert ranks.all_gather(value) is value
    assert ranks.gather_objects(value)[0] is value
    assert ranks.sums(1, 2.5) == [1, 2.5]
    assert not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="MASTER_ADDR, MASTER_PORT is not set"):
        Ranks.join()


def without_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that is always the same, so that an update is a function of its batch."""
    monkeypatch.setattr(distributions, "exponential_", lambda x: x.fill_(1.0))
    monkeypatch.setattr(torch.Tensor, "normal_", torch.Tensor.zero_)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


def learner(batch_size: int) -> Dreamer:
    """A Dreamer with everything that has statistics."""
    torch.manual_seed(0)
    model = tiny(centre_images=True, ensemble=EnsembleConfig(members=2, layers=1, units=8))
    model.control = {"reward": 1.0, "disagreement": 0.5}
    optim = OptimConfig(lr=1e-3, warmup=0)
    config = DreamerConfig(
        batch_size=batch_size, batch_length=5, horizon=3, return_rate=0.5, model=model, optim=optim
    )
    return Dreamer(SPEC, config, torch.device("cpu"))


def cut(batch: Batch, rows: slice) -> Batch:
    obs = {key: value[rows] for key, value in batch.obs.items()}
    names = ("action", "reward", "is_first", "is_last", "is_terminal")
    return Batch(obs, *(getattr(batch, name)[rows] for name in names))


def updates(rank: int | None, bad: bool = False) -> dict[str, Any]:
    """The state, and the mean of each loss, after updates with a rank's half of each batch, or
    with all of it."""
    ranks = Ranks() if rank is None else Ranks.join()
    half = ROWS // ranks.size
    with pytest.MonkeyPatch.context() as patch:
        agent = learner(half)
        without_chance(patch)
        agent.return_scale.limit = LIMIT
        if rank == 1:  # it takes the weights of rank 0
            torch.nn.init.ones_(agent.optim.flat)
        shares.join(agent, ranks)
        told = []
        for number in range(UPDATES):
            batch = random_batch(SPEC, ROWS, seed=number)
            if bad and number == 1:
                batch.reward[-1, -1] = torch.nan
            mine = cut(batch, slice(ranks.rank * half, (ranks.rank + 1) * half))
            told.append(raised(lambda mine=mine: agent.train_on(mine))[0])
        state = {name: value.clone() for name, value in agent.state_dict()["module"].items()}
        return {**state, "grad": agent.optim.grad.clone(), "told": told}


def test_two_halves_teach_what_the_whole_teaches() -> None:
    whole = updates(None)  # first, so that kernels are compiled once for all
    one, other = together(updates)
    for name, value in whole.items():
        if name == "told":
            continue
        assert torch.equal(one[name], other[name]), name  # one agent, to the bit
        # Without noise the actor's gradient is all but zero, and the RMS scaling makes steps of
        # up to lr = 1e-3 out of its rounding, which differs from processor to processor.
        loose = name.startswith("actor.") or name in {"grad", "critic.out.weight"}
        torch.testing.assert_close(
            one[name], value, rtol=2e-4, atol=1e-3 if loose else 2e-6, msg=name
        )
    scale = whole["return_scale.high"] - whole["return_scale.low"]
    assert float(scale) > LIMIT  # or every range would count alike
    assert float(whole["model.encoder.centre.mean"].std()) > 0
    assert float(whole["model.ensemble.typical"]) != 1


def test_what_is_not_finite_on_one_rank_is_skipped_by_all() -> None:
    whole = updates(None, bad=True)
    one, other = together(lambda rank: updates(rank, bad=True))
    expected = ["nothing", "FloatingPointError", "nothing"]
    assert one.pop("told") == other.pop("told") == whole.pop("told") == expected
    for name, value in whole.items():
        assert torch.equal(one[name], other[name]), name
        # Without noise the actor's gradient is all but zero, and the RMS scaling makes steps of
        # up to lr = 1e-3 out of its rounding, which differs from processor to processor.
        loose = name.startswith("actor.") or name in {"grad", "critic.out.weight"}
        torch.testing.assert_close(
            one[name], value, rtol=2e-4, atol=1e-3 if loose else 2e-6, msg=name
        )
