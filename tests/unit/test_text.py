from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from manytune.config import Study
from manytune.data.tasks import get_task
from manytune.inference.model_card import model_card
from manytune.utils.errors import StudyError
from manytune.utils.text import counted, duration, listed, markdown, printable, quoted, shortened
from record_factory import make_record

COMMANDS = "\x1b[31m \x07 \x7f \x9b2J \u202e \u2066 \u2028 \ud800"


def test_what_commands_a_terminal_or_cannot_be_encoded_is_written_as_escapes() -> None:
    assert printable(COMMANDS) == r"\x1b[31m \x07 \x7f \x9b2J \u202e \u2066 \u2028 \ud800"
    assert printable("a\nb\tc") == r"a\nb\tc"
    assert printable("a\nb\tc", keep="\n") == "a\nb" r"\tc"


def test_letters_of_any_script_stay() -> None:
    text = "é ß 中文 עברית \u200f 👍🏽 ± –"
    assert printable(text) == text


def test_long_texts_are_cut_and_stay_on_one_line() -> None:
    assert shortened("a\n  b\x1b") == r"a b\x1b"
    assert len(shortened("x" * 1000)) == 120
    assert len(quoted("\x1b" + "x" * 10**6)) < 100


def test_of_many_names_the_first_are_listed() -> None:
    assert listed([]) == ""
    assert listed(["a", "b\n c"]) == "a, b c"
    assert listed([*map(str, range(2000))], 2) == "0, 1 and 1,998 more"
    assert listed(["x" * 100, "y"], 2, 5) == "xxxx…, y"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# a\n- b", r"\# a - b"),
        ("<img src=x>", r"\<img src=x\>"),
        ("[a](b)", r"\[a\](b)"),
        ("$x$ `y` a|b", r"\$x\$ \`y\` a\|b"),
        ("see https://a.b or www.a.b", r"see https:/\/a.b or www\.a.b"),
        ("\x1b[0m", r"\\x1b\[0m"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text: str, shown: str) -> None:
    assert markdown(text) == shown


def test_every_error_is_short_and_can_be_printed() -> None:
    error = StudyError(f"start {COMMANDS}\n{'x' * 10**6} end")
    assert len(str(error)) < 3100
    assert str(error).startswith(r"start \x1b[31m")
    assert str(error).endswith("end")
    assert str(StudyError("two\nlines")) == "two\nlines"


def test_a_model_card_shows_names_as_text_and_its_front_matter_holds_no_more_keys() -> None:
    labels = ("<img src=x>", "[a](http://b)\n# c", "x: y\n---")
    task = replace(get_task("cola"), labels=labels, title="a\n---\nlicense: b", text_columns=("`c` <b>",))
    study = Study.from_dict(
        {"name": "s", "tasks": ["cola"], "seeds": [0], "methods": [{"method": "full", "learning_rate": 1e-5}]}
    )
    record = make_record(label="<script>")
    card = model_card(record, task, study, form="transformers", base="minilm", call="x", score=0.5)
    assert "license" not in yaml.safe_load(card.split("\n---\n\n# ")[0].removeprefix("---\n"))
    shown = card.split("\n---\n\n# ")[1]
    assert r"\<img src=x\>, 1 \[a\](http:/\/b) \# c" in shown
    assert r"\`c\` \<b\>" in shown
    assert "<script>" not in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (200, "3:20 min"), (3599, "59:59 min")),
        *((3600, "1:00 h"), (7500, "2:05 h"), (90_000, "25:00 h")),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counted() -> None:
    assert [counted(number, "run") for number in (0, 1, 2, 1000)] == ["0 runs", "1 run", "2 runs", "1,000 runs"]
