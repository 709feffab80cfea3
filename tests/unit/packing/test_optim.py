from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from equal_updates import EqualAdamW
from manytune.packing.bank import Bank, BankTensor, Group, decays, multiples
from manytune.packing.dropout import generator
from manytune.packing.kernels import AdamWUpdate, Kernels, reference
from manytune.packing.optim import SCHEDULES, PackedAdamW, schedule_factor

STEPS = 20
RATES = (1e-2, 3e-3, 1e-1, 5e-4, 2e-2)
SETTINGS = {"betas": (0.8, 0.99), "epsilon": 1e-6, "weight_decay": 0.1}

# Groups of runs (first, last) and the tensors that they hold: name → shape of one run's.
GROUPS: list[tuple[int, int, dict[str, tuple[int, ...]]]] = [
    (0, 2, {"query.lora_A.weight": (4, 2), "query.lora_B.weight": (2, 6)}),
    (2, 5, {"query.bias": (5,), "output.LayerNorm.bias": (5,)}),
    (0, 3, {"classifier.weight": (2, 5), "classifier.bias": (2,)}),
    (3, 5, {"classifier.bias": (2,)}),
]
MULTIPLES: dict[str, tuple[float, ...]] = {"query.lora_B.weight": (16.0, 1.0), "classifier.weight": (0.3, 1.0, 2.5)}
"""Tensors with learning rates of their own: multiples of those of the runs that hold them, from run 0 on."""


def make_bank() -> Bank:
    draw = generator("bank")
    bank = Bank()
    for first, last, shapes in GROUPS:
        group = bank.group(first, last)
        for name, shape in shapes.items():
            value = nn.Parameter(torch.randn(last - first, *shape, generator=draw))
            rates = multiples(MULTIPLES.get(name, (1.0,) * len(group)))
            bank.add(BankTensor(name, "head", group, value, rates=rates))
    return bank


def gradients(step: int, run: int, name: str, shape: Sequence[int]) -> Tensor:
    """A run's gradient; the runs' norms lie far apart, so that some are clipped and some are not."""
    return torch.randn(*shape, generator=generator(step, run, name)) * 10.0 ** (run - 2)


def put_gradients(bank: Bank, step: int, runs: Sequence[int]) -> None:
    """Give every tensor its gradient; `runs` are the numbers that the bank's runs had at first."""
    for tensor in bank.tensors:
        own = range(tensor.group.first, tensor.group.last)
        shape = tensor.value.shape[1:]
        tensor.value.grad = torch.stack([gradients(step, runs[run], tensor.name, shape) for run in own])


def rates_at(step: int) -> list[float]:
    return [rate * (1 + step % 3) for rate in RATES]


def torchs(bank: Bank, run: int, max_grad_norm: float, steps: int) -> dict[str, Tensor]:
    """The run's tensors after `steps` updates by torch's own optimizer and clipping."""
    parameters = {name: nn.Parameter(value) for name, value in bank.state(run).items()}
    factors = [MULTIPLES[name][run] if name in MULTIPLES else 1.0 for name in parameters]
    decays = [0.0 if name.endswith("bias") else SETTINGS["weight_decay"] for name in parameters]
    groups = [{"params": [p], "weight_decay": decay} for p, decay in zip(parameters.values(), decays, strict=True)]
    optimizer = torch.optim.AdamW(groups, betas=SETTINGS["betas"], eps=SETTINGS["epsilon"], fused=True)
    for step in range(steps):
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = rates_at(step)[run] * factor
        for name, parameter in parameters.items():
            parameter.grad = gradients(step, run, name, parameter.shape)
        if max_grad_norm > 0:
            nn.utils.clip_grad_norm_(parameters.values(), max_grad_norm)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def assert_states_equal(bank: Bank, run: int, expected: dict[str, Tensor], tolerance: float) -> None:
    state = bank.state(run)
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name], rtol=tolerance, atol=tolerance, msg=f"{run} {name}")


# Where nothing is clipped, not a bit differs in plain torch; the norms are summed in another order than torch's, and
# the compiled kernel rounds the last elements of a tensor, which fill no vector, in another way.
@pytest.mark.parametrize(("max_grad_norm", "tolerance"), [(0.0, 0.0), (1.0, 3e-7)])
def test_every_run_moves_as_by_torchs_adamw(kernels: Kernels, max_grad_norm: float, tolerance: float) -> None:
    bank = make_bank()
    expected = [torchs(bank, run, max_grad_norm, STEPS) for run in range(len(RATES))]
    optimizer = EqualAdamW(bank, kernels, max_grad_norm=max_grad_norm, **SETTINGS)
    for step in range(STEPS):
        put_gradients(bank, step, range(len(RATES)))
        optimizer.step(rates_at(step))
    for run, wanted in enumerate(expected):
        assert_states_equal(bank, run, wanted, tolerance if kernels.name == "plain" else 3e-7)


def test_runs_of_other_ages_and_settings_step_together_as_each_would_alone(kernels: Kernels) -> None:
    """To the bit: what stands beside a run does not count."""
    ages = (0, 7, 2, 30, 1)
    norms = (1.0, 0.0, 0.5, 1.0, 0.0)
    decays = (0.1, 0.0, 0.2, 0.3, 0.0)
    betas = ((0.9, 0.999), (0.8, 0.99), (0.9, 0.9), (0.5, 0.999), (0.9, 0.95))

    def updates(step: int) -> list[AdamWUpdate]:
        return [
            AdamWUpdate(ages[run] + step + 1, rates_at(step)[run], betas[run], 10.0 ** (-8 + run), decay, norms[run])
            for run, decay in enumerate(decays)
        ]

    together = make_bank()
    for step in range(3):
        put_gradients(together, step, range(len(ages)))
        PackedAdamW(together, kernels).step(updates(step))
    for run in range(len(ages)):
        alone = make_bank()
        alone.keep([run])
        for step in range(3):
            put_gradients(alone, step, [run])
            PackedAdamW(alone, kernels).step([updates(step)[run]])
        assert_states_equal(together, run, alone.state(0), 0.0)
        for tensor in alone.of(0):  # and as torch does a step of that number
            parameter = nn.Parameter(make_bank().state(run)[tensor.name])
            if norms[run] == 0.0 and not tensor.transposed:
                own = updates(0)[run]
                weight_decay = own.weight_decay if tensor.decays else 0.0
                theirs = torch.optim.AdamW(
                    [parameter], own.rate, own.betas, own.epsilon, weight_decay=weight_decay, fused=True
                )
                zeros = torch.zeros_like(parameter)
                theirs.state[parameter] = {"step": torch.tensor(own.number - 1.0), "exp_avg": zeros.clone()}
                theirs.state[parameter]["exp_avg_sq"] = zeros.clone()
                for step in range(3):
                    theirs.param_groups[0]["lr"] = rates_at(step)[run]
                    parameter.grad = gradients(step, run, tensor.name, parameter.shape)
                    theirs.step()
                torch.testing.assert_close(tensor.data(0), parameter.detach(), rtol=3e-7, atol=3e-7)


def test_neighbours_of_one_rate_are_stepped_as_one_where_operations_are_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stretches, gpu = reference._stretches, torch.device("cuda")
    assert stretches([1.0, 1.0, 2.0, 1.0], gpu) == ([1.0, 2.0, 1.0], [2, 1, 1])
    assert stretches([1.0, 1.0, 2.0], torch.device("cpu")) == ([1.0, 1.0, 2.0], [1, 1, 1])
    rates, found = [1e-2, 1e-2, 1e-2, 5e-4, 1e-2], []
    for where in (torch.device("cpu"), gpu):
        monkeypatch.setattr(reference, "_stretches", lambda own, _, where=where: stretches(own, where))
        bank = make_bank()
        optimizer = EqualAdamW(bank, reference.ReferenceKernels(), max_grad_norm=1.0, **SETTINGS)
        for step in range(3):
            put_gradients(bank, step, range(len(rates)))
            optimizer.step(rates)
        found.append(bank)
    for run in range(len(rates)):
        assert_states_equal(found[1], run, found[0].state(run), 3e-7)


def test_large_tensors_and_a_copy_in_bf16(kernels: Kernels) -> None:
    """Tensors of several chunks, gradients in bf16 of a copy in bf16, which stays the parameter rounded."""
    shape, bank = (130, 257), Bank()
    value = nn.Parameter(torch.randn(*shape, generator=generator("large")))
    tensor = BankTensor("dense.weight", "backbone", bank.group(0, 1), value, stacked=False)
    tensor.compute_copy = nn.Parameter(value.detach().bfloat16())
    bank.add(tensor)
    theirs = nn.Parameter(value.detach().clone())
    reference = torch.optim.AdamW(
        [theirs], lr=1e-2, betas=SETTINGS["betas"], eps=SETTINGS["epsilon"], weight_decay=0.1, fused=True
    )
    optimizer = EqualAdamW(bank, kernels, max_grad_norm=1.0, **SETTINGS)
    for step in range(3):
        grad = gradients(step, 2, "large", shape).bfloat16()
        tensor.compute_copy.grad, theirs.grad = grad.clone(), grad.float()
        nn.utils.clip_grad_norm_([theirs], 1.0)
        optimizer.step([1e-2])
        reference.step()
        assert tensor.grad is None
        torch.testing.assert_close(value, theirs, rtol=3e-7, atol=3e-7)
        assert torch.equal(tensor.compute_copy, value.bfloat16())


def test_gradients_of_micro_batches_add_up_in_fp32() -> None:
    value = nn.Parameter(torch.zeros(3))
    tensor = BankTensor(
        "dense.weight", "backbone", Group(0, 1), value, stacked=False, compute_copy=nn.Parameter(value.bfloat16())
    )
    assert tensor.compute_copy is not None
    for grad in (1.0, 2.0**-12, 2.0**-12):
        tensor.collect_grad()
        tensor.compute_copy.grad = torch.full((3,), grad).bfloat16()
    for _ in range(2):  # the last one counts before it is collected too
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, torch.full((3,), 1 + 2.0**-11))
        tensor.collect_grad()


def test_a_pack_of_one_over_tensors_of_their_own(kernels: Kernels) -> None:
    stacked = Bank()
    group = stacked.group(0, 1)
    plain = Bank()
    alone = plain.group(0, 1)
    for index, shape in enumerate([(3, 4), (4,)]):
        value = torch.randn(*shape, generator=generator(index))
        name = f"dense{index}.weight"
        stacked.add(BankTensor(name, "backbone", group, nn.Parameter(value[None].clone())))
        plain.add(BankTensor(name, "backbone", alone, nn.Parameter(value.clone()), stacked=False))
    for bank in (stacked, plain):
        optimizer = EqualAdamW(bank, kernels, max_grad_norm=1.0, **SETTINGS)
        for step in range(5):
            for tensor in bank.tensors:
                grad = gradients(step, 3, tensor.name, tensor.data(0).shape)
                tensor.value.grad = grad.view(tensor.value.shape)
            optimizer.step([1e-2])
    for name, tensor in stacked.state(0).items():
        assert torch.equal(plain.state(0)[name], tensor)


def test_an_embedding_moves_as_by_a_dense_adamw_whatever_rows_a_batch_has(kernels: Kernels) -> None:
    """Its gradient comes sparse: rows of an earlier step have none in a later one, though they have moments."""
    start = torch.randn(8, 3, generator=generator("embedding"))
    bank = Bank()
    name = "embeddings.word_embeddings.weight"
    value = nn.Parameter(start.clone())
    bank.add(BankTensor(name, "backbone", bank.group(0, 1), value, stacked=False, rates=multiples([0.4])))
    optimizer = EqualAdamW(bank, kernels, max_grad_norm=1.0, **SETTINGS)
    dense = nn.Parameter(start.clone())
    theirs = torch.optim.AdamW(
        [dense], lr=4e-3, betas=SETTINGS["betas"], eps=SETTINGS["epsilon"], weight_decay=0.1, fused=True
    )
    for ids in ([0, 1, 1], [5, 6], [2, 0]):
        rows = torch.tensor(ids)
        nn.functional.embedding(rows, value, sparse=True).square().sum().backward()
        nn.functional.embedding(rows, dense).square().sum().backward()
        assert value.grad is not None
        assert value.grad.is_sparse
        nn.utils.clip_grad_norm_([dense], 1.0)
        optimizer.step([1e-2])
        theirs.step()
        theirs.zero_grad()
        torch.testing.assert_close(bank.state(0)[name], dense.detach(), rtol=0, atol=3e-7)


@pytest.mark.parametrize("kept", [[0, 3, 4], [1], [2, 3]])
def test_a_bank_that_shrank_goes_on_exactly(kernels: Kernels, kept: list[int]) -> None:
    whole, shrinking = make_bank(), make_bank()
    runs = list(range(len(RATES)))
    optimizers = [EqualAdamW(bank, kernels, max_grad_norm=1.0, **SETTINGS) for bank in (whole, shrinking)]
    for step in range(10):
        if step == 4:
            shrinking.keep(kept)
            runs = kept
        put_gradients(whole, step, range(len(RATES)))
        put_gradients(shrinking, step, runs)
        optimizers[0].step(rates_at(step))
        optimizers[1].step([rates_at(step)[run] for run in runs])
    for position, run in enumerate(kept):
        assert_states_equal(shrinking, position, whole.state(run), 0.0)


def test_one_runs_bad_gradient_stays_its_own(kernels: Kernels) -> None:
    clean, spoilt = make_bank(), make_bank()
    for bank in (clean, spoilt):
        optimizer = EqualAdamW(bank, kernels, max_grad_norm=1.0, **SETTINGS)
        for step in range(2):
            put_gradients(bank, step, range(len(RATES)))
            if bank is spoilt:
                for tensor in bank.tensors:
                    if tensor.holds(1) and tensor.value.grad is not None:
                        tensor.value.grad[1 - tensor.group.first] = float("nan")
            optimizer.step(RATES)
    for run in (0, 2, 3, 4):
        assert_states_equal(spoilt, run, clean.state(run), 0.0)
    assert all(tensor.isnan().all() for tensor in spoilt.state(1).values())


def test_gradients_are_let_go_and_frozen_tensors_stay(kernels: Kernels) -> None:
    bank = make_bank()
    frozen = bank.add(BankTensor("dense.weight", "head", bank.groups[0], nn.Parameter(torch.ones(2, 3), False)))
    optimizer = EqualAdamW(bank, kernels, **SETTINGS)
    for _ in range(2):
        put_gradients(bank, 0, range(len(RATES)))
        frozen.value.grad = None
        optimizer.step(RATES)
        assert all(tensor.value.grad is None for tensor in bank.tensors)
    assert torch.equal(frozen.value, torch.ones(2, 3))
    assert not frozen.moments


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 12), (5, 12), (12, 12), (11, 12), (1, 40), (20, 8)])
@pytest.mark.parametrize(
    ("schedule", "factory"),
    [
        ("linear", get_linear_schedule_with_warmup),
        ("cosine", get_cosine_schedule_with_warmup),
        ("constant", lambda optimizer, warmup, _: get_constant_schedule_with_warmup(optimizer, warmup)),
    ],
)
def test_schedules_are_transformers_at_every_step(
    schedule: str, factory: Callable[..., LRScheduler], warmup: int, total: int
) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = factory(optimizer, warmup, total)
    for step in range(total):
        (theirs,) = scheduler.get_last_lr()
        assert schedule_factor(schedule, step, warmup, total) == pytest.approx(theirs, rel=1e-12, abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_every_schedule_of_a_study_is_compared_above() -> None:
    assert SCHEDULES.keys() == {"linear", "cosine", "constant"}


def models() -> Iterator[nn.Module]:
    figures = {
        "vocab_size": 10,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    for model in (
        BertForSequenceClassification(BertConfig(**figures)),
        RobertaForSequenceClassification(RobertaConfig(**figures)),
    ):
        yield model
        yield peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"]))
    # Linear layers, so that Trainer has only their names to go by.
    names = ("norm", "attn_norm", "RMSNorm", "final_layernorm", "normal", "norms", "Wqkv")
    yield nn.ModuleDict({"layers": nn.ModuleDict({name: nn.Linear(2, 2) for name in names})})
    yield nn.ModuleDict({name: nn.Linear(2, 2) for name in names})


# peft 0.21 asks transformers 5.23 by an old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_weight_decay_applies_where_trainer_applies_it() -> None:
    compared = 0
    for model in models():
        names = [name for name, _ in model.named_parameters()]
        theirs = set(Trainer.get_decay_parameter_names(None, model))
        assert {name for name in names if decays(name)} == theirs
        assert 0 < len(theirs) < len(names)
        compared += 1
    assert compared == 6
