"""Copies of weights: used inside their context, after which the original weights are back."""

import pytest
import torch
from torch import nn

from llm_profile.passes import placement
from llm_profile.passes.placement import WeightCopies, copied_parameters, weight_copies


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False)).requires_grad_(False)


def places(of: nn.Module) -> list[int]:
    return [p.data_ptr() for p in of.parameters()]


def test_copies_hold_the_same_numbers_elsewhere_and_the_originals_come_back() -> None:
    net, x = model(), torch.ones(1, 4)
    before, expected = places(net), net(x)
    copies = [WeightCopies(net), WeightCopies(net)]
    seen = [before]
    for copy in copies:
        with copy.in_use():
            assert torch.equal(net(x), expected)
            seen.append(places(net))
    assert places(net) == before
    assert len({place for one in seen for place in one}) == 3 * len(before)


def test_the_originals_come_back_after_an_error() -> None:
    net = model()
    before = places(net)
    with pytest.raises(ZeroDivisionError), WeightCopies(net).in_use():
        raise ZeroDivisionError
    assert places(net) == before


def test_tied_weights_stay_tied() -> None:
    net = model()
    net[1].weight = net[0].weight
    with WeightCopies(net).in_use():
        assert net[1].weight.data_ptr() == net[0].weight.data_ptr()


def test_large_weights_are_left_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    monkeypatch.setattr(placement, "LARGEST_BYTES", 16)
    assert copied_parameters(net) == [net[0].bias]


def test_no_copies_where_memory_is_short() -> None:
    net = model()
    needed = 2 * 4 * sum(p.numel() for p in net.parameters())  # float32
    assert len(weight_copies(net, 2, int(needed / placement.MEMORY_SHARE) + 1)) == 2
    assert weight_copies(net, 2, int(needed / placement.MEMORY_SHARE) - 1) == []
