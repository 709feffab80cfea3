from __future__ import annotations

from pathlib import Path

import pytest

from manytune.report.analysis import Analysis, analyse
from manytune.report.content import Content, compose
from manytune.report.report_data import ReportData, read
from search_factory import make_search_directory
from study_factory import GLUE_LIKE, make_study_directory

STATES = {
    "cola-bitfit-lr2e-4-s3": "collapsed",
    "cola-lora-r256-lr4e-4-s1": "failed",
    "stsb-lora-r2-lr4e-4-s4": "pruned",
}


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the kind that the project is for: 70 runs, three of which did not finish."""
    return make_study_directory(tmp_path_factory.mktemp("studies") / "glue", states=STATES).root


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of three spaces with 24 trials each, whose winners were trained again with 10 seeds."""
    return make_search_directory(tmp_path_factory.mktemp("studies") / "searched").root


@pytest.fixture(scope="session")
def search_report(searched: Path) -> Content:
    return compose(read([searched]))


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of a version that kept neither predictions nor dev rows, with two seeds."""
    study = {**GLUE_LIKE, "tasks": ["cola"], "seeds": [0, 1]}
    root = make_study_directory(tmp_path_factory.mktemp("studies") / "old", study, artifacts=False).root
    for path in root.glob("runs/*/history.csv"):
        path.unlink()
    return root


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose sentences and failures hold markup."""
    study = {**GLUE_LIKE, "tasks": ["cola"], "methods": GLUE_LIKE["methods"][:2]}
    states = {"cola-full-lr5e-5-s4": "failed"}
    return make_study_directory(tmp_path_factory.mktemp("studies") / "hostile", study, states=states, hostile=True).root


@pytest.fixture(scope="session")
def material(directory: Path) -> ReportData:
    return read([directory])


@pytest.fixture(scope="session")
def analyses(material: ReportData) -> tuple[Analysis, ...]:
    return analyse(material)


@pytest.fixture(scope="session")
def cola(analyses: tuple[Analysis, ...]) -> Analysis:
    return analyses[0]


@pytest.fixture(scope="session")
def stsb(analyses: tuple[Analysis, ...]) -> Analysis:
    return analyses[1]


@pytest.fixture(scope="session")
def content(material: ReportData) -> Content:
    return compose(material)


@pytest.fixture(scope="session")
def old_analysis(old: Path) -> Analysis:
    (analysis,) = analyse(read([old]))
    return analysis
