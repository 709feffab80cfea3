"""One optimizer step of all runs of a pack: planned on the host, taken on the device, recorded there if possible."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manytune.data.splits import Encoded
from manytune.data.tasks import Task
from manytune.packing import PackedAdamW, PackedModel, plan_batch, run_keys
from manytune.packing.kernels import AdamWUpdate, adamw_settings
from manytune.packing.layout import Plan
from manytune.packing.transfer import put_all, size_of
from manytune.utils.hardware import is_out_of_memory, let_go_of_memory

_MOST_RECORDS = 32
"""Recorded steps of a pack that are kept: batches of CoLA have three to nine shapes, the last of an epoch others."""


@dataclass(frozen=True, eq=False)
class RunBatch:
    """What one run of a pack learns from in a step."""

    rows: NDArray[Any]  # its rows of the training split, in their order
    micro_batch: int  # how many of them are computed at once
    step: int  # the number of its step, from 0
    class_weights: NDArray[Any] | None = None  # [classes] fp32 weights in its loss, None for equal ones


@dataclass(frozen=True, eq=False)
class StepPlan:
    """All that the device needs for a step."""

    # by name: of the micro-batch 0 `0.ids` and all that `Plan.arrays` has, `0.labels` and `0.share`, [R, B] each, the
    # labels and the weight of each row in its run's loss; `run_keys` [R] and `settings` [R, 8]
    arrays: dict[str, NDArray[Any]]
    micro_batches: tuple[Plan, ...]
    updates: tuple[AdamWUpdate, ...]  # of each run; none where gradients alone are wanted

    @property
    def shape(self) -> tuple[Any, ...]:
        """Steps of one shape differ in nothing but what the arrays hold."""
        rows = [self.arrays[f"{number}.labels"].shape for number in range(len(self.micro_batches))]
        clips = any(update.max_grad_norm > 0 for update in self.updates)
        return tuple(plan.shape for plan in self.micro_batches), *rows, clips


def plan_step(
    model: PackedModel, task: Task, data: Encoded, batches: Sequence[RunBatch], updates: Sequence[AdamWUpdate] = ()
) -> StepPlan:
    """Plan a step of the runs of a pack, each on its own rows.

    A run's loss is the mean over all rows of its step, however they are cut into micro-batches.
    """
    counts = np.array([len(own.rows) for own in batches])
    # [R, the most rows of a run]; behind its own rows, a run has its last one again, whose share in the loss is zero.
    places = np.minimum(np.arange(counts.max()), counts[:, None] - 1)
    drawn = np.stack([data.labels[own.rows[at]] for own, at in zip(batches, places, strict=True)])
    labels = torch.from_numpy(task.type.loss_labels(task, drawn))
    share = _weights(labels, batches, counts)
    share = share / share.sum(1, keepdim=True)
    micro = np.array([own.micro_batch for own in batches])
    arrays, plans = {"run_keys": run_keys(model.seeds, [own.step for own in batches])}, []
    for number in range(int((-(-counts // micro)).max())):
        firsts = number * micro
        part = [own.rows[first : first + most] for own, first, most in zip(batches, firsts, micro, strict=True)]
        plan = plan_batch(data, part, first_index=firsts.tolist(), rounded=model.rounds_rows)
        within = np.arange(max(map(len, part)))
        at = torch.from_numpy(np.minimum(firsts[:, None] + within, places.shape[1] - 1))
        inside = torch.from_numpy(within < np.array([len(own) for own in part])[:, None])
        arrays |= {f"{number}.{name}": array for name, array in plan.arrays.items()}
        arrays[f"{number}.labels"] = labels.gather(1, at).numpy()
        arrays[f"{number}.share"] = (share.gather(1, at) * inside).numpy()
        plans.append(plan)
    arrays["settings"] = adamw_settings(updates)
    return StepPlan(arrays, tuple(plans), tuple(updates))


def _weights(labels: Tensor, batches: Sequence[RunBatch], counts: NDArray[Any]) -> Tensor:
    """[R, N] fp32: the weight of each row, by its label; zero behind a run's own rows."""
    weights = torch.ones(labels.shape)
    for run, own in enumerate(batches):
        if own.class_weights is not None:
            weights[run] = torch.from_numpy(own.class_weights)[labels[run]]
        weights[run, counts[run] :] = 0.0
    return weights


def forward_backward(model: PackedModel, task: Task, plan: StepPlan, tensors: Mapping[str, Tensor]) -> Tensor:
    """Gradients of each run's loss; returns the losses, [R] fp32. `tensors` are the plan's arrays on the device.

    The runs' losses are added up: each depends on its own parameters alone, so every run gets the gradient of its own.
    """
    losses = torch.zeros(len(tensors["run_keys"]), device=model.device)
    for number, batch in enumerate(plan.micro_batches):
        model.bank.collect_grads()
        layout = batch.layout({name: tensors[f"{number}.{name}"] for name in batch.arrays})
        logits = model.forward(layout, run_keys=tensors["run_keys"])
        of_rows = task.type.losses(logits, tensors[f"{number}.labels"])
        per_run = (of_rows * tensors[f"{number}.share"]).sum(1)
        # A thread of its own for the backward pass gains nothing on one device, and costs a hand-over.
        with torch.autograd.set_multithreading_enabled(False):
            per_run.sum().backward()
        losses += per_run.detach()
    return losses


@dataclass(frozen=True, eq=False)
class _Record:
    """A step that the device takes again as a whole, on what the buffer holds by then."""

    graph: torch.cuda.CUDAGraph
    buffer: Tensor  # [bytes] uint8, the plan's arrays
    losses: Tensor  # [R] fp32, which the graph writes
    kept: object  # what else it reads


class Losses:
    """The losses of a queued step, [R], on their way to the host; steps that are queued later do not hold them up."""

    def __init__(self, losses: Tensor) -> None:
        self._losses, self._there = losses, None
        if losses.device.type == "cuda":
            self._losses = torch.empty(losses.shape, pin_memory=True).copy_(losses, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def read(self) -> list[float]:
        """Wait for the step, and give its losses."""
        if self._there is not None:
            self._there.synchronize()
        losses: list[float] = self._losses.tolist()
        return losses


class Stepper:
    """Takes the steps of a pack.

    With kernels that `fuse`, a run whose loss is no finite number is not updated in that step, nor in any later one: so
    the next step may be queued before the host has seen the losses of this one.

    With the environment variable MANYTUNE_CUDA_GRAPHS=1, on a GPU with Triton's kernels, a step of a shape that has
    been met before is recorded as a CUDA graph: launching some 450 kernels one by one takes several times as long as
    they do for a small pack. It is off until it has been seen to come to the same bits on a GPU (docs/performance.md).
    """

    def __init__(self, model: PackedModel, optimizer: PackedAdamW, task: Task) -> None:
        self._model, self._optimizer, self._task = model, optimizer, task
        self._met: Counter[tuple[Any, ...]] = Counter()
        self._records: dict[tuple[Any, ...], _Record] = {}  # the one that was taken last is the last
        self._version = -1  # of the model, when its steps were recorded
        # [R] fp32, 0 for a run once its loss was no finite number; None where the host sees that before the next step
        self._alive: Tensor | None = None
        self._recording = model.device.type == "cuda" and os.environ.get("MANYTUNE_CUDA_GRAPHS") == "1"
        self._stream: torch.cuda.Stream | None = None  # on which steps are recorded
        self._pool: Any = None  # of memory, which all records share: only one is taken at a time

    def take(self, plan: StepPlan) -> Tensor:
        """Queue a step; returns the losses, [R] fp32 on the device, which are there once the device has taken it."""
        device = self._model.device
        if self._version != self._model.version:  # runs have left or joined: their tensors lie elsewhere
            self._forget_records()
            self._version = self._model.version
            if self._model.context.kernels.fuses:
                self._alive = torch.ones(len(self._model.members), device=device)
        if not self._recording or not self._model.can_be_recorded:
            return self._step(plan, put_all(plan.arrays, device))
        shape = plan.shape
        self._met[shape] += 1
        if shape in self._records:
            record = self._records[shape] = self._records.pop(shape)
            put_all(plan.arrays, device, record.buffer)
        elif self._met[shape] == 1:
            return self._step(plan, put_all(plan.arrays, device))
        else:
            try:
                record = self._recorded(plan)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # Recorded steps need memory of their own beside that of others. Without them there is enough.
                self._recording = False
                self._forget_records()
                let_go_of_memory(device)
                return self._step(plan, put_all(plan.arrays, device))
            if len(self._records) >= _MOST_RECORDS:
                self._records.pop(next(iter(self._records)))
            self._records[shape] = record
        record.graph.replay()
        return record.losses

    def _forget_records(self) -> None:
        self._met.clear()
        self._records.clear()
        self._pool = None  # which ends with the last record

    def _step(self, plan: StepPlan, tensors: Mapping[str, Tensor]) -> Tensor:
        losses = forward_backward(self._model, self._task, plan, tensors)
        if self._alive is not None:
            self._alive.mul_(losses.isfinite())
        self._optimizer.step(plan.updates, tensors["settings"], self._alive)
        return losses

    def _recorded(self, plan: StepPlan) -> _Record:
        """Record a step, on a shape of which one has been taken; recording takes none."""
        device, kernels = self._model.device, self._model.context.kernels
        buffer = torch.empty(size_of(plan.arrays), dtype=torch.uint8, device=device)
        tensors = put_all(plan.arrays, device, buffer)
        kernels.before_recording()
        try:
            graph, losses = self._capture(lambda: self._step(plan, tensors))
        except BaseException:
            kernels.after_recording(failed=True)
            self._model.context.end()
            for tensor in self._model.bank.tensors:
                tensor.forget_grad()
            raise
        return _Record(graph, buffer, losses, kernels.after_recording())

    def _capture(self, step: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Have the device note what a step asks of it. `torch.cuda.graph` would give all cached memory back before."""
        device = self._model.device
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
            with torch.cuda.stream(self._stream):  # cuBLAS's workspace of this stream is to be no record's memory
                torch.mm(torch.ones(16, 16, device=device), torch.ones(16, 16, device=device))
        self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                losses = step()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(self._stream)
        return graph, losses
