"""torch-lr-finder: a range test with our optimizers, and everything as it was afterwards."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from alike import CLASSES, assert_on_engine, net, torchs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch_lr_finder = pytest.importorskip("torch_lr_finder")

pytestmark = pytest.mark.filterwarnings("ignore")


def loader() -> Any:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, torch.arange(64) % 3), batch_size=16
    )


def found(model: Any, optimizer: Any) -> Any:
    finder = torch_lr_finder.LRFinder(model, optimizer, torch.nn.CrossEntropyLoss(), device="cpu")
    finder.range_test(loader(), end_lr=0.1, num_iter=12, diverge_th=100)
    return finder


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_range_test(cls: Any, stepped: bool) -> None:
    """The losses of torch's class; then the parameters, states and rates of before."""
    histories = []
    for each in (cls, torchs(cls)):
        model = net()
        optimizer = each(model.parameters(), lr=1e-4)
        if stepped:
            model(torch.ones(2, 6)).square().sum().backward()
            optimizer.step()
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        finder = found(model, optimizer)
        assert not torch.equal(model.state_dict()["0.weight"], before[0]["0.weight"])
        histories.append(finder.history)
        finder.reset()
        after = model.state_dict(), optimizer.state_dict()
        assert all(torch.equal(t, before[0][name]) for name, t in after[0].items())
        assert after[1]["param_groups"][0]["lr"] == 1e-4
        torch.testing.assert_close(after[1]["state"], before[1]["state"], rtol=0, atol=0)
        if each is cls:
            assert_on_engine(optimizer, cls.__name__)
    assert histories[0]["lr"] == histories[1]["lr"]
    assert len(histories[0]["loss"]) == 12
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-4)
