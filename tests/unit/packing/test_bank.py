from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from manytune.packing.bank import Bank, BankTensor, join_dumps, run_of_dump
from manytune.packing.dropout import generator

# The tensors that the groups of a bank hold: name → (shape of one run's, transposed, trains).
KINDS: list[dict[str, tuple[tuple[int, ...], bool, bool]]] = [
    {"lora_A.weight": ((4, 2), True, True), "lora_B.weight": ((2, 3), True, True)},
    {"key.bias": ((3,), False, True)},
    {"head.weight": ((2, 3), False, False), "head.bias": ((2,), False, True)},
]


def make_bank(sizes: list[tuple[int, int]]) -> Bank:
    """Groups one after another, each of some runs and of one of KINDS; and one group over all runs."""
    bank = Bank()
    ends = list(itertools.accumulate(size for size, _ in sizes))
    stretches = [(end - size, end, kind) for (size, kind), end in zip(sizes, ends, strict=True)]
    for first, last, kind in [*stretches, (0, ends[-1], 2)]:
        group = bank.group(first, last)
        for name, (shape, transposed, trains) in KINDS[kind].items():
            draw = generator(len(bank.tensors))
            value = nn.Parameter(torch.randn(last - first, *shape, generator=draw), trains)
            bank.add(BankTensor(name, "head", group, value, transposed=transposed))
    for tensor in bank.tensors:
        count = len(tensor.group)
        tensor.moments = {
            "mean": tensor.value.detach() * 2,
            "steps": torch.arange(count) + tensor.group.first + 100.0,
        }
    return bank


def runs_of(bank: Bank) -> int:
    return bank.groups[-1].last


banks = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 1)), min_size=1, max_size=4).map(make_bank)


@given(banks)
def test_a_run_holds_the_tensors_of_its_groups(bank: Bank) -> None:
    for run in range(runs_of(bank)):
        (special,) = (group for group in bank.groups[:-1] if group.first <= run < group.last)
        held = bank.of(run)
        assert {id(tensor.group) for tensor in held} == {id(special), id(bank.groups[-1])}
        assert set(bank.state(run)) == {tensor.name for tensor in held}
        assert len(held) in (3, 4)


@given(banks)
def test_state_is_oriented_as_the_unpacked_model_and_a_copy(bank: Bank) -> None:
    for run in range(runs_of(bank)):
        before = bank.state(run)
        for tensor in bank.of(run):
            stored = tensor.value.detach()[run - tensor.group.first]
            expected = stored.T if tensor.transposed else stored
            assert torch.equal(before[tensor.name], expected)
            assert before[tensor.name].is_contiguous()
            before[tensor.name].zero_()
            assert expected.abs().min() > 0


@given(banks, st.data())
def test_what_is_loaded_is_what_the_state_says_and_others_stay(bank: Bank, data: st.DataObject) -> None:
    chosen = data.draw(st.integers(0, runs_of(bank) - 1))
    before = [bank.state(run) for run in range(runs_of(bank))]
    new = {name: tensor * 3 for name, tensor in before[chosen].items()}
    bank.load(chosen, new)
    for run, old in enumerate(before):
        state = bank.state(run)
        for name, tensor in (new if run == chosen else old).items():
            assert torch.equal(state[name], tensor)


@given(banks, st.data())
def test_a_smaller_bank_keeps_each_runs_tensors_and_moments(bank: Bank, data: st.DataObject) -> None:
    everyone = list(range(runs_of(bank)))
    kept = sorted(data.draw(st.sets(st.sampled_from(everyone))))
    before = [
        {tensor.name: (tensor.get(run), tensor.moments["steps"][run - tensor.group.first]) for tensor in bank.of(run)}
        for run in kept
    ]
    bank.keep(kept)
    for position, expected in enumerate(before):
        held = bank.of(position)
        assert {tensor.name for tensor in held} == expected.keys()
        for tensor in held:
            value, steps = expected[tensor.name]
            row = position - tensor.group.first
            assert torch.equal(tensor.get(position), value)
            assert tensor.moments["steps"][row] == steps
            assert torch.equal(tensor.moments["mean"][row], tensor.data(position) * 2)
    for tensor in bank.tensors:
        trains = tensor.name != "head.weight"
        assert tensor.value.requires_grad is trains
        assert tensor.value.is_leaf
        assert len(tensor.value) == len(tensor.group) > 0
    assert sum(len(group) for group in bank.groups[:-1]) == len(kept)
    assert not bank.of(len(kept))


def dumped(bank: Bank, run: int) -> dict[str, dict[str, torch.Tensor]]:
    return run_of_dump(bank.dump(), run)


@given(st.permutations([(1, 0), (2, 1), (1, 1)]), st.data())
def test_a_run_is_restored_in_another_bank_without_touching_its_neighbours(
    sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    old, new = make_bank([(1, 0), (2, 1), (1, 1)]), make_bank(sizes)
    for tensor in (*old.tensors, *new.tensors):
        tensor.moments = {"exp_avg": tensor.value.detach() * 2}
    for tensor in new.tensors:
        if tensor.holds(0):
            tensor.set(0, tensor.get(0) * 5)
    old_run = data.draw(st.integers(0, 3))
    kinds = {frozenset(new.state(run)): run for run in range(4)}
    new_run = kinds[frozenset(old.state(old_run))]
    before = [dumped(new, run) for run in range(4)]
    before = [{name: {k: v.clone() for k, v in parts.items()} for name, parts in each.items()} for each in before]
    new.restore(new_run, dumped(old, old_run))
    for run, expected in enumerate(before):
        expected = dumped(old, old_run) if run == new_run else expected
        found = dumped(new, run)
        assert found.keys() == expected.keys()
        for name, parts in found.items():
            assert parts.keys() == expected[name].keys() == {"value", "exp_avg"}
            assert all(torch.equal(parts[part], expected[name][part]) for part in parts)


def test_a_dump_is_oriented_as_the_unpacked_model_and_can_be_joined_anew() -> None:
    bank = make_bank([(2, 0), (1, 1)])
    for tensor in bank.tensors:
        tensor.moments = {"exp_avg": tensor.value.detach() * 2}
    for run in range(3):
        for name, parts in dumped(bank, run).items():
            assert torch.equal(parts["value"], bank.state(run)[name])
            assert torch.equal(parts["exp_avg"], bank.state(run)[name] * 2)
    joined = join_dumps([dumped(bank, 2), dumped(bank, 0)])
    for position, run in enumerate((2, 0)):
        again, expected = run_of_dump(joined, position), dumped(bank, run)
        assert again.keys() == expected.keys()
        assert all(torch.equal(again[name]["value"], expected[name]["value"]) for name in again)


def test_a_part_that_does_not_fit_is_refused() -> None:
    bank = make_bank([(2, 0)])
    for tensor in bank.tensors:
        tensor.moments = {"exp_avg": tensor.value.detach() * 2}
    found = dumped(bank, 1)
    with pytest.raises(ValueError, match=r"lora_A\.weight has the shape \(2, 4\), not \(1, 4\)"):
        bank.restore(1, {**found, "lora_A.weight": {**found["lora_A.weight"], "exp_avg": torch.zeros(1, 4)}})
    with pytest.raises(ValueError, match=r"lora_A\.weight has no value"):
        bank.restore(1, {**found, "lora_A.weight": {}})
    with pytest.raises(KeyError, match=r"'lora_A\.weight'"):
        bank.restore(1, {name: parts for name, parts in found.items() if name != "lora_A.weight"})


@pytest.mark.parametrize("change", ["missing", "besides"])
def test_tensors_that_are_missing_or_besides_are_named(change: str) -> None:
    bank = make_bank([(2, 0)])
    state = bank.state(1)
    if change == "missing":
        del state["lora_B.weight"]
    else:
        state["key.bias"] = torch.zeros(3)
    named = {"missing": r"'lora_B\.weight'", "besides": r"'key\.bias'"}[change]
    with pytest.raises(KeyError, match=rf"\[{named}\]"):
        bank.load(1, state)


@pytest.mark.parametrize("shape", [(4, 2), (1, 4), (1, 1), (4,), (1,), ()])
def test_a_tensor_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """Even one that would broadcast: it is not what was saved."""
    bank = make_bank([(2, 0)])
    state = bank.state(0)
    assert state["lora_A.weight"].shape == (2, 4)
    with pytest.raises(ValueError, match=r"lora_A\.weight has the shape \(2, 4\), not"):
        bank.load(0, state | {"lora_A.weight": torch.zeros(shape)})


def test_a_tensor_of_a_pack_of_one_is_the_models_own() -> None:
    bank = Bank()
    value = nn.Parameter(torch.ones(2, 3))
    tensor = bank.add(BankTensor("dense.weight", "backbone", bank.group(0, 1), value, stacked=False))
    bank.load(0, {"dense.weight": torch.full((2, 3), 5.0)})
    assert (value == 5.0).all()
    state = bank.state(0)["dense.weight"]
    state.zero_()
    assert (value == 5.0).all()
    bank.keep([0])
    assert tensor.value is value
    bank.keep([])
    assert not bank.tensors


def test_state_is_fp32_whatever_the_bank_holds() -> None:
    bank = Bank()
    value = nn.Parameter(torch.ones(1, 3, dtype=torch.bfloat16))
    bank.add(BankTensor("a.bias", "bias", bank.group(0, 1), value))
    assert bank.state(0)["a.bias"].dtype == torch.float32
