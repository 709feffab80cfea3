"""`looks.json`: the planned looks, and at how many seeds scores could be seen before seeds were added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manytune.config.extension import extend_study
from manytune.config.plan import plan_runs
from manytune.stats.looks import SeedPlan
from manytune.storage.directory import Store
from manytune.storage.growth import SeedGrowth
from manytune.storage.study_state import StudyState
from manytune.utils.errors import StoreError
from record_factory import make_record
from study_files import small_study

PLANNED = {"looks": [5, 10, 20]}


def begun(root: Path, **changes: Any) -> Store:
    return Store.create_or_open(root, small_study(Path("m"), **changes))


def end_a_run(store: Store) -> None:
    run = plan_runs(store.study())[0]
    store.write_record(make_record(run_id=run.id, task=run.task, seed=run.seed, label=run.label, model=run.model))


def extend(store: Store, seeds: str) -> None:
    Store.create_or_open(store.root, extend_study(store.study(), seeds=seeds), additions=True)


def test_growth_at_planned_looks_is_no_growth(tmp_path: Path) -> None:
    store = begun(tmp_path, seeds=PLANNED)
    assert store.looks() == SeedGrowth(planned=(5, 10, 20))
    end_a_run(store)
    for seeds in ("10", "20"):
        extend(store, seeds)
    assert store.looks() == SeedGrowth(planned=(5, 10, 20), seen=(5, 10))
    assert SeedPlan.of(store.looks()) == SeedPlan((5, 10, 20))


def test_growth_elsewhere_takes_the_place_of_the_plan(tmp_path: Path) -> None:
    store = begun(tmp_path, seeds=PLANNED)
    end_a_run(store)
    extend(store, "7")
    assert SeedPlan.of(store.looks()) == SeedPlan((5, 10, 20)), "nothing was added after it yet"
    extend(store, "10")
    assert store.looks().seen == (5, 7)
    assert SeedPlan.of(store.looks()) == SeedPlan(grown=True)


def test_without_a_plan_every_look_counts_that_could_claim_something(tmp_path: Path) -> None:
    store = begun(tmp_path, seeds=[0, 1, 2])
    assert not (tmp_path / "looks.json").exists()
    end_a_run(store)
    extend(store, "5")
    assert store.looks() == SeedGrowth(seen=(3,))
    assert SeedPlan.of(store.looks()) == SeedPlan(), "below five seeds no verdict is given"
    extend(store, "6")
    assert SeedPlan.of(store.looks()) == SeedPlan(grown=True)


def test_before_a_run_has_ended_seeds_and_looks_may_change(tmp_path: Path) -> None:
    store = begun(tmp_path, seeds=PLANNED)
    extend(store, "7")
    Store.create_or_open(tmp_path, small_study(Path("m"), seeds={"looks": [6, 9]}), accept_changes=True)
    assert store.looks() == SeedGrowth(planned=(6, 9))
    Store.create_or_open(tmp_path, small_study(Path("m"), seeds=[0]), accept_changes=True)
    assert store.looks() == SeedGrowth()


def test_a_plan_that_comes_after_results_does_not_count_and_that_is_said(tmp_path: Path) -> None:
    store = begun(tmp_path, seeds=[0, 1, 2, 3, 4])
    end_a_run(store)
    late = small_study(Path("m"), seeds=PLANNED)
    Store.create_or_open(tmp_path, late)  # it is the same study, which may go on
    assert store.study().looks == (5, 10, 20)
    assert store.looks() == SeedGrowth()
    assert store.looks().ignored(late.looks) == (
        "The study file has looks at 5, 10, 20 seeds, written after runs had ended: no look counts as planned."
    )
    extend(store, "10")
    assert SeedPlan.of(store.looks()) == SeedPlan(grown=True)


def test_a_plan_that_is_changed_later_stays_what_it_was(tmp_path: Path) -> None:
    store = begun(tmp_path, seeds=PLANNED)
    end_a_run(store)
    Store.create_or_open(tmp_path, small_study(Path("m"), seeds={"looks": [5, 6], "list": [0, 1, 2, 3, 4]}))
    assert store.looks() == SeedGrowth(planned=(5, 10, 20))
    assert "the planned looks stay 5, 10, 20" in str(store.looks().ignored((5, 6)))
    assert "The study file has no looks" in str(store.looks().ignored(()))
    assert store.looks().ignored((5, 10, 20)) is None


def test_seeds_that_are_taken_away_or_changed_are_growth_too(tmp_path: Path) -> None:
    store = begun(tmp_path, seeds=[0, 1, 2, 3, 4, 5, 6])
    end_a_run(store)
    Store.create_or_open(tmp_path, small_study(Path("m"), seeds=[0, 1, 2, 3, 4]), accept_changes=True)
    assert store.looks().seen == (7,)


def test_a_finished_study_takes_another_margin_and_nothing_else_is_to_be_done(tmp_path: Path) -> None:
    study = small_study(Path("m"), seeds=[0])
    store = begun(tmp_path, seeds=[0])
    end_a_run(store)
    assert not StudyState.read(store, study, retry_failed=False).has_work
    other = small_study(Path("m"), seeds=[0], report={"margin": 0.03})
    assert StudyState.read(store, other, retry_failed=False).has_work
    Store.create_or_open(tmp_path, other)
    assert store.study().margin_of("builtin-similarity") == 0.03


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = begun(tmp_path, seeds=PLANNED)
    for text in ("", "[]", '{"planned": ["x"]}'):
        (tmp_path / "looks.json").write_text(text)
        with pytest.raises(StoreError, match=r"looks.json is damaged: .*Put back a copy"):
            store.looks()
