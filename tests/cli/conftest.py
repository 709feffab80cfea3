from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Command

from tiny import make_tiny


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a very small random BERT and its tokenizer."""
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")
