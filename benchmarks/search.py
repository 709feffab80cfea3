"""How long a search takes, beside the same trials by transformers' Trainer and peft.

    python benchmarks/search.py --data GLUE --out docs/results/search-cpu.json

The trials are the same everywhere: settings, seeds, rows, rungs and rule of pruning. Ways, in turn in each round:

- manytune: `run_study`, from its start to its winners;
- pruned: one trial after the other by Trainer and peft at their best (bf16 where the hardware is fast at it, dynamic
  padding, batches grouped by length, fused AdamW), a trial that is not among the best at a rung ends there;
- unpruned: the same without pruning;
- grid: as many trials to their ends in the way of the study that manytune grew from: fp32, every sentence padded to
  the longest of the data.

The last two train every trial to its end, so one trial of each method is timed for them, for so many steps, and
multiplied: what they would take beside that, such as starting and evaluating, is left out in their favour.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured import Measurements, machine
from speed import WARM_UP, Bench, Settings
from trainer_reference import Rows, build_model, collate, common_arguments
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from manytune import Callback, run_study
from manytune.config import Study
from manytune.config.plan import Run, evaluation_steps, make_runs, steps_per_epoch, total_steps, warmup_steps
from manytune.config.spaces import Space, search_spaces
from manytune.data import metrics
from manytune.executors import Workers
from manytune.search.halving import SpaceHalving, rung_steps
from manytune.search.sampling import SpaceSampler, seed_of
from manytune.storage.directory import Store
from manytune.training.workload import TaskWork, prepare
from manytune.utils import hardware


def study_of(settings: Settings, *, rows: int, epochs: int, trials: int) -> Study:
    """The search that is timed."""
    per_epoch = steps_per_epoch(rows - rows // 10, 16)
    return Study.from_dict(
        {
            "name": "search-speed",
            "model": settings.model,
            "data_dir": settings.data,
            "tasks": ["cola"],
            "limit": rows,
            "training": {
                "epochs": epochs,
                "batch_size": 16,
                "max_length": 512,
                "warmup_ratio": 0.06,
                "weight_decay": 0.1,
                "eval_every": max(1, per_epoch // 2),
                "precision": settings.precision,
            },
            "methods": [
                {"method": "full", "learning_rate": {"low": 1e-5, "high": 5e-4}},
                {"method": "bitfit", "learning_rate": {"low": 2e-4, "high": 2e-2}},
                {
                    "method": "lora",
                    "rank": {"choice": [2, 8, 64]},
                    "alpha": 16,
                    "dropout": 0.1,
                    "learning_rate": {"low": 1e-4, "high": 1e-2},
                },
            ],
            "search": {"trials": trials},
            "confirm": "none",
        }
    )


def ours(study: Study, workers: int, threads: int) -> dict[str, Any]:
    """Seconds of a whole search, and what its trials took."""
    folder = Path(tempfile.mkdtemp())
    try:
        started = time.perf_counter()
        run_study(study, folder / "out", executor=Workers(workers, threads), callbacks=[Callback()])
        seconds = time.perf_counter() - started
        records = Store.open(folder / "out").finished_runs().values()
        return {"seconds": seconds, "steps": sum(record.steps or 0 for record in records), "trials": len(records)}
    finally:
        shutil.rmtree(folder)


class TrainerSearch:
    """The same trials, one after the other."""

    def __init__(self, study: Study, settings: Settings) -> None:
        self.study, self.settings = study, settings
        self.work: TaskWork = prepare(study, "cola")
        self.spaces = search_spaces(study, "cola")

    def trials(self, space: Space) -> list[Run]:
        """Those of a space, with the settings and seeds that manytune draws."""
        search = self.study.search
        assert search is not None
        sampler, made = SpaceSampler(search, space), []
        for number in range(search.trials or 0):
            seed = seed_of(search, "seed", space.task, space.name, number)
            made += make_runs(self.study, space.task, *space.at(sampler.draw(number)), seeds=[seed])
        return made

    def pruned(self) -> dict[str, Any]:
        """Seconds of all trials with pruning, and the steps that they took."""
        torch.set_num_threads(self.settings.threads)
        started, steps = time.perf_counter(), 0
        search = self.study.search
        assert search is not None
        assert search.halving is not None
        for space in self.spaces:
            halving = SpaceHalving(search.halving, search.seed, f"{space.task}: {space.name}")
            for number, run in enumerate(self.trials(space)):
                steps += self._train(run, halving, number)
        return {"seconds": time.perf_counter() - started, "steps": steps}

    def _train(self, run: Run, halving: SpaceHalving, number: int) -> int:
        training, work = self.study.training, self.work
        task, total = work.task, total_steps(training, work.train.size)
        per_epoch = steps_per_epoch(work.train.size, training.batch_size)
        evaluations = evaluation_steps(training, per_epoch, total)
        warmup = warmup_steps(training, total)
        rungs = rung_steps(halving.halving, evaluations, total, warmup, per_epoch)
        last: list[float | None] = [None]

        def score(prediction: EvalPrediction) -> dict[str, float]:
            predicted = task.type.decode(np.asarray(prediction.predictions, dtype=np.float32))
            found = metrics.evaluate(task, predicted, np.asarray(prediction.label_ids))
            last[0] = found[task.primary_metric]
            return {"score": last[0] or 0.0}

        class Prune(TrainerCallback):
            def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                step = state.global_step
                if step in rungs and not halving.decide(total, step, {number: last[0]})[number]:
                    control.should_training_stop = True

        set_seed(run.seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=build_model(run, work),
                args=common_arguments(
                    folder,
                    run.seed,
                    per_device_train_batch_size=training.batch_size,
                    per_device_eval_batch_size=64,
                    max_steps=total,
                    eval_strategy="steps",
                    eval_steps=evaluations[0],
                    learning_rate=run.method.learning_rate,
                    warmup_steps=warmup,
                    weight_decay=training.weight_decay,
                    optim="adamw_torch_fused",
                    train_sampling_strategy="group_by_length",
                    length_column_name="length",
                    bf16=self.settings.dtype == torch.bfloat16,
                    use_cpu=self.settings.device.type == "cpu",
                ),
                train_dataset=Rows(work.train),
                eval_dataset=Rows(work.dev),
                data_collator=collate,
                compute_metrics=score,
                callbacks=[Prune()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        if trainer.state.global_step == total:
            halving.ended(number, last[0])
        return int(trainer.state.global_step)

    def to_the_end(self, bench: Bench, *, best: bool) -> dict[str, Any]:
        """Seconds of all trials without pruning, from samples a second of one trial of each method."""
        total = total_steps(self.study.training, self.work.train.size)
        seconds = 0.0
        search = self.study.search
        assert search is not None
        for space in self.spaces:
            method = self.trials(space)[0].method.model_dump(mode="json")
            what = {"tasks": ["cola"], "seeds": [0], "methods": [method]}
            rate = bench.trainer(what, best=best, threads=self.settings.threads)
            seconds += (search.trials or 0) * total * 16 / rate
        return {"seconds": seconds, "steps": total * len(self.spaces) * (search.trials or 0)}


def measure(options: argparse.Namespace) -> None:
    """Every way, round by round."""
    device = torch.device("cpu")
    settings = Settings("minilm", options.data, device, 20, options.rounds, options.threads, options.precision)
    study = study_of(settings, rows=options.rows, epochs=options.epochs, trials=options.trials)
    facts = {
        **machine(device, settings.dtype),
        "versions": hardware.versions(),
        "warm_up_steps": WARM_UP,
        "study": study.model_dump(mode="json", exclude={"data_dir"}),
        "workers": options.workers,
    }
    kept = Measurements(options.out, facts, resume=options.resume)
    rounds: list[dict[str, Any]] = kept.begin("rounds", [])
    trainer, bench = TrainerSearch(study, settings), Bench(settings)
    while len(rounds) < options.rounds:
        row: dict[str, Any] = {"manytune": ours(study, options.workers, max(1, options.threads // options.workers))}
        row["pruned"] = trainer.pruned()
        row["unpruned"] = trainer.to_the_end(bench, best=True)
        row["grid"] = trainer.to_the_end(bench, best=False)
        rounds.append(row)
        kept.save()
        print({way: round(each["seconds"], 1) for way, each in row.items()}, flush=True)
    print(ratios(rounds))


def ratios(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Way → how many times as long as manytune it takes, the median of the rounds."""
    ways = [way for way in rounds[0] if way != "manytune"]
    times = {way: [row[way]["seconds"] / row["manytune"]["seconds"] for row in rounds] for way in ways}
    return {way: round(statistics.median(each), 2) for way, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder in GLUE's layout; by default the hub, or MANYTUNE_GLUE_DIR")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on with what the file lacks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1000, help="training rows, a tenth of which compares trials")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--trials", type=int, default=12, help="of each of the three methods")
    parser.add_argument("--workers", type=int, default=2, help="processes that train packs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all workers, and of Trainer")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
