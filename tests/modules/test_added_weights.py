"""Tests of weights that are older than a part of their network."""

import torch
from torch import nn

from fairseq_samu.modules.adapter import Adapter
from fairseq_samu.modules.added_weights import with_added


def test_weights_saved_before_adapters_were_added_are_completed() -> None:
    network = nn.Sequential(nn.Linear(4, 4), Adapter(4, 2))
    plain = {
        name: torch.zeros_like(value) for name, value in network[0].state_dict(prefix="0.").items()
    }
    completed = with_added(plain, network, (Adapter,))
    assert completed.keys() == network.state_dict().keys()
    assert torch.equal(completed["1.down.weight"], network[1].down.weight)
    assert torch.equal(completed["0.weight"], torch.zeros(4, 4))
    # Neither what else is missing nor half an adapter is made up.
    assert "0.bias" not in with_added({"0.weight": torch.zeros(4, 4)}, network, (Adapter,))
    del completed["1.up.bias"]
    assert "1.up.bias" not in with_added(completed, network, (Adapter,))
