"""Each method in the table is held to what all methods promise.

A new method needs an example in `method_contract.EXAMPLES`, and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from manytune.methods import METHODS, HeadMode
from manytune.methods.registry import heads_of
from manytune.packing import build_layout
from method_contract import EXAMPLES, TRAIN, Case, Lab, MethodContract, cases

# peft 0.21 asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(params=cases(*EXAMPLES))
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    return request.param


class TestEveryMethod(MethodContract):
    pass


def test_every_method_has_an_example() -> None:
    assert {*METHODS} == {name for name, example in EXAMPLES.items() if example.of is None}
    modes = [heads_of(kind) for kind in METHODS.values()]
    assert all(modes)
    assert {mode for some in modes for mode in some} == set(get_args(HeadMode))


def test_loras_a_waits_for_b(tmp_path: Path) -> None:
    """While B is zero, A has no gradient: after one step only B has moved."""
    model = Lab(tmp_path).fresh(Case("lora", "full", "bert"))
    model.forward(build_layout(TRAIN, [np.arange(6)]), step=0).square().sum().backward()
    factors = [tensor for tensor in model.bank.of(0) if tensor.kind == "adapter"]
    assert len(factors) == 8
    for tensor in factors:
        grad = tensor.value.grad
        assert grad is not None
        assert bool(grad.any()) is (".lora_B." in tensor.name)
