"""The packed layers against the same mathematics, a run at a time, with autograd's own gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manytune.packing.bank import Bank, BankTensor
from manytune.packing.context import Context
from manytune.packing.dropout import Keys, dropout_scale, generator, site_key
from manytune.packing.kernels.reference import ReferenceKernels
from manytune.packing.layout import build_layout
from manytune.packing.linear import PackedLayerNorm, PackedLinear, run_rows
from manytune.packing.updates import LowRankUpdate, SharedUpdate
from tiny import random_rows

IN, OUT = 6, 5
RUNS, PER_RUN = 6, 3
SEEDS = (3, 1, 4, 1, 5, 9)
PATH = "encoder.query"

# Runs 0 and 5 train nothing here; 1 and 2 are of one rank, 3 of another, and 2 to 4 have biases of their own.
LORA = ((1, 3, 2, (0.5, 4.0), 0.3), (3, 4, 4, (2.0,), 0.0))  # first, last, rank, scales, dropout
DORA = ((0, 1, 2, (1.5,), 0.3), (4, 6, 3, (0.5, 2.0), 0.0))
VERA = ((2, 4, 7, 0.3),)  # first, last, rank, dropout
BIASES = ((2, 3), (3, 5))
SCALES = ((0, 2), (4, 6))


def start(dtype: torch.dtype, *, train: bool, even: bool = False) -> Context:
    """A context in the middle of a forward pass over runs with different numbers of tokens."""
    data = random_rows(40, longest=6, seed=2)
    rows = [np.arange(run * PER_RUN, (run + 1) * PER_RUN) for run in range(RUNS)]
    layout = build_layout(data, [rows[0]] * RUNS if even else rows)
    counts = np.diff(layout.token_bounds)
    assert (len(set(counts)) == 1) is even
    context = Context(dtype, ReferenceKernels())
    context.begin(layout, Keys.build(layout, SEEDS, 2) if train else None)
    return context


class Case:
    """A packed layer with LoRA groups and bias banks, and its parameters."""

    def __init__(
        self,
        context: Context,
        *,
        bias: bool = True,
        lora: bool = True,
        others: bool = False,
        biases: bool = True,
        scales: bool = False,
    ) -> None:
        draw = generator("linear")
        dtype = context.dtype

        def fresh(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=draw, dtype=dtype))

        linear = nn.Linear(IN, OUT, bias=bias, dtype=dtype).requires_grad_(False)
        linear.weight.copy_(fresh(OUT, IN).detach())
        if bias:
            linear.bias.copy_(fresh(OUT).detach().float())  # which is how rows of frozen biases are made
        self.context = context
        self.layer = PackedLinear(linear, PATH, context, dtype)
        bank = Bank()
        for first, last, rank, factors, dropout in LORA if lora else ():
            group = bank.group(first, last)
            a = bank.add(BankTensor("a", "adapter", group, fresh(last - first, IN, rank)))
            b = bank.add(BankTensor("b", "adapter", group, fresh(last - first, rank, OUT)))
            self.layer.hooks.low_rank.append(LowRankUpdate(a, b, torch.tensor(factors, dtype=dtype), dropout))
        for first, last, rank, factors, dropout in DORA if others else ():
            group = bank.group(first, last)
            a = bank.add(BankTensor("a", "adapter", group, fresh(last - first, IN, rank)))
            b = bank.add(BankTensor("b", "adapter", group, fresh(last - first, rank, OUT)))
            magnitude = bank.add(BankTensor("magnitude", "adapter", group, fresh(last - first, OUT)))
            scale = torch.tensor(factors, dtype=dtype)
            self.layer.hooks.low_rank.append(LowRankUpdate(a, b, scale, dropout, magnitude))
        for first, last, rank, dropout in VERA if others else ():
            group = bank.group(first, last)
            lambda_b = bank.add(BankTensor("lambda_b", "adapter", group, fresh(last - first, OUT)))
            lambda_d = bank.add(BankTensor("lambda_d", "adapter", group, fresh(last - first, rank)))
            # Both are parts of what wider layers need.
            shared = fresh(rank, IN + 2).detach()[:, :IN], fresh(OUT + 3, rank).detach()[:OUT]
            self.layer.hooks.low_rank.append(SharedUpdate(lambda_b, lambda_d, *shared, dropout))
        for first, last in BIASES if biases else ():
            value = fresh(last - first, OUT)
            self.layer.hooks.biases.append(bank.add(BankTensor("bias", "bias", bank.group(first, last), value)))
        for first, last in SCALES if scales else ():
            group = bank.group(first, last)
            for entries, width in ((self.layer.hooks.input_scales, IN), (self.layer.hooks.output_scales, OUT)):
                entries.append(bank.add(BankTensor("scale", "adapter", group, fresh(last - first, width))))
        self.tensors = bank.tensors
        self.parameters = [tensor.value for tensor in bank.tensors]
        assert context.layout is not None
        self.x = torch.randn(context.layout.tokens, IN, generator=draw, dtype=dtype, requires_grad=True)

    def packed(self, x: Tensor) -> Tensor:
        """What the layer makes of x, as in the first call of a forward pass."""
        context = self.context
        assert context.layout is not None
        context.begin(context.layout, context.keys)
        return self.layer(x)  # type: ignore[no-any-return]

    def plain(self, x: Tensor) -> Tensor:
        """The same, a run at a time."""
        context = self.context
        parts = []
        for run, (first, last) in enumerate(self.spans()):
            rows = x[first:last]
            for scale in self.layer.hooks.input_scales:
                rows = rows * scale.of_run(run) if scale.holds(run) else rows
            y = rows @ self.layer.weight.T
            own = [bias for bias in self.layer.hooks.biases if bias.holds(run)]
            if own:
                y = y + own[0].value[run - own[0].group.first]
            elif self.layer.bias is not None:
                y = y + self.layer.bias
            for update in self.layer.hooks.low_rank:
                if not update.group.first <= run < update.group.last:
                    continue
                index = run - update.group.first
                inputs = rows
                if context.keys is not None and update.dropout > 0:
                    keys = context.keys.tokens[first:last]
                    mask = dropout_scale(keys, site_key(f"{PATH}.lora", 0), IN, update.dropout, x.dtype)
                    assert 0 < int((mask == 0).sum()) < mask.numel()
                    inputs = rows * mask
                if isinstance(update, SharedUpdate):
                    lambda_b, lambda_d = update.lambda_b.value[index], update.lambda_d.value[index]
                    y = y + lambda_b * ((lambda_d * (inputs @ update.a.T)) @ update.b.T)
                    continue
                weight = update.scale[index] * update.a.value[index] @ update.b.value[index]
                if update.magnitude is not None:
                    whole = self.layer.weight.T + weight
                    gain = update.magnitude.value[index] / whole.detach().norm(dim=0)
                    y = y + inputs @ (gain * whole - self.layer.weight.T)
                else:
                    y = y + inputs @ weight
            for scale in self.layer.hooks.output_scales:
                y = y * scale.of_run(run) if scale.holds(run) else y
            parts.append(y)
        return torch.cat(parts)

    def spans(self) -> Iterator[tuple[int, int]]:
        return itertools.pairwise(self.context.segments.bounds)


@pytest.mark.parametrize("train", [True, False], ids=["dropout", "no dropout"])
@pytest.mark.parametrize("even", [True, False], ids=["even", "uneven"])
@pytest.mark.parametrize(
    "has", ["all", "updates", "both", "lora", "biases", "scales", "neither", "no frozen bias", "new bias"]
)
def test_output_and_gradients_equal_those_of_each_run_alone(has: str, even: bool, train: bool) -> None:
    context = start(torch.float64, train=train, even=even)
    case = Case(
        context,
        bias=has not in ("no frozen bias", "new bias"),
        lora=has not in ("biases", "scales", "neither"),
        others=has in ("all", "updates"),
        biases=has in ("all", "both", "biases", "new bias"),
        scales=has in ("all", "scales"),
    )
    ours, plain = case.packed(case.x), case.plain(case.x)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    leaves = [case.x, *case.parameters]
    upstream = torch.randn(*ours.shape, generator=generator("upstream"), dtype=ours.dtype)
    for got, wanted in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(plain, leaves, upstream), strict=True
    ):
        assert wanted.abs().max() > 0
        # The sums over a run's rows are taken in fp32.
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_gradients_by_finite_differences() -> None:
    case = Case(start(torch.float64, train=True), scales=True)

    def forward(x: Tensor, *_: Tensor) -> Tensor:
        return case.packed(x)

    assert torch.autograd.gradcheck(forward, (case.x, *case.parameters), fast_mode=True)


def test_inputs_without_gradient_cost_none() -> None:
    """The first layer above frozen embeddings: its parameters train, its input does not."""
    case = Case(start(torch.float32, train=True), others=True)
    case.packed(case.x.detach()).sum().backward()
    expected = torch.autograd.grad(case.plain(case.x).sum(), case.parameters)
    for parameter, grad in zip(case.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("poisoned", range(RUNS))
def test_what_one_run_holds_does_not_reach_another(poisoned: int) -> None:
    case = Case(start(torch.float32, train=True), others=True, scales=True)
    spans = list(case.spans())
    upstream = torch.ones(case.x.shape[0], OUT)
    clean = torch.autograd.grad(case.packed(case.x), [case.x, *case.parameters], upstream)
    own = slice(*spans[poisoned])
    with torch.no_grad():
        case.x[own] = float("nan")
        for tensor in case.tensors:
            if tensor.holds(poisoned):
                tensor.data(poisoned).fill_(float("nan"))
    upstream[own] = float("nan")
    output = case.packed(case.x)
    spoilt = torch.autograd.grad(output, [case.x, *case.parameters], upstream)
    others = torch.ones(case.x.shape[0], dtype=torch.bool)
    others[own] = False
    assert output[own].isnan().all()
    assert output[others].isfinite().all()
    assert torch.equal(spoilt[0][others], clean[0][others])
    for tensor, before, after in zip(case.tensors, clean[1:], spoilt[1:], strict=True):
        group = tensor.group
        for run in range(group.first, group.last):
            if run != poisoned:
                assert torch.equal(after[run - group.first], before[run - group.first])


def test_each_call_of_a_layer_draws_another_mask() -> None:
    case = Case(start(torch.float32, train=True))
    first, second = case.packed(case.x), case.layer(case.x)
    span = slice(*list(case.spans())[1])
    assert not torch.equal(first[span], second[span])
    assert torch.equal(case.packed(case.x), first)


def test_a_layer_without_adapters_keeps_its_inputs_shape() -> None:
    case = Case(start(torch.float32, train=False))
    batched = case.packed(case.x[None])
    assert batched.shape == (1, case.x.shape[0], OUT)
    assert torch.equal(batched[0], case.packed(case.x))


def test_run_rows_are_frozen_where_no_bank_has_them() -> None:
    context = start(torch.float32, train=False)
    case = Case(context, lora=False)
    frozen = torch.full((OUT,), 7.0)
    rows = run_rows(frozen, case.layer.hooks.biases, context)
    assert rows.shape == (RUNS, OUT)
    assert (rows[[0, 1, 5]] == 7.0).all()
    assert torch.equal(rows[2:5], torch.cat(case.parameters))


@pytest.mark.parametrize("has", ["neither", "biases", "gains", "both", "new biases"])
def test_layer_norm_with_gains_and_biases_of_each_runs_own(has: str) -> None:
    context = start(torch.float64, train=True)
    draw = generator("norm")
    norm = nn.LayerNorm(IN, eps=1e-3, dtype=torch.float64).requires_grad_(False)
    norm.weight.copy_(torch.rand(IN, generator=draw))
    norm.bias.copy_(torch.rand(IN, generator=draw))
    if has == "new biases":
        norm.bias = None
    packed = PackedLayerNorm(norm, context)
    bank = Bank()
    for entries, spans, names in (
        (packed.hooks.biases, BIASES, ("biases", "both", "new biases")),
        (packed.hooks.gains, SCALES, ("gains", "both")),
    ):
        for first, last in spans if has in names else ():
            value = nn.Parameter(torch.rand(last - first, IN, generator=draw, dtype=torch.float64))
            entries.append(bank.add(BankTensor("norm", "bias", bank.group(first, last), value)))
    assert context.layout is not None
    x = torch.randn(1, context.layout.tokens, IN, generator=draw, dtype=torch.float64, requires_grad=True)
    parts = []
    for run, (first, last) in enumerate(itertools.pairwise(context.segments.bounds)):
        bias, *_ = *(bias.of_run(run) for bias in packed.hooks.biases if bias.holds(run)), norm.bias
        gain, *_ = *(gain.of_run(run) for gain in packed.hooks.gains if gain.holds(run)), norm.weight
        parts.append(F.layer_norm(x[:, first:last], (IN,), gain, bias, norm.eps))
    plain = torch.cat(parts, dim=1)
    ours = packed(x)
    assert ours.shape == x.shape
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    leaves = [x, *(tensor.value for tensor in bank.tensors)]
    upstream = torch.randn(*x.shape, generator=draw, dtype=x.dtype)
    for got, wanted in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(plain, leaves, upstream), strict=True
    ):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
