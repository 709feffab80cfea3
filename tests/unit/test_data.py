from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from manytune.config import Study
from manytune.data.splits import Array, Encoded, Split, encode, epoch_order, load_split, load_task, train_split
from manytune.data.tasks import TASKS, Task
from manytune.utils.errors import DataError, ModelError, StudyError

COLA = dataclasses.replace(TASKS["cola"], sizes={})
STSB = dataclasses.replace(TASKS["stsb"], sizes={})

COLA_LINES = [
    "gj04\t1\t\tThe sailors rode the breeze.",
    "gj04\t0\t*\tThe rode sailors.",
    "gj04\t1\t\tThey sank.",
]
STSB_HEADER = "index\tgenre\tsentence1\tsentence2\tscore"
STSB_LINES = ["0\tnews\tA man sings.\tA man is singing.\t5.000", "1\tnews\tA cat.\tTwo dogs.\t0.4"]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a GLUE folder's file and return the GLUE folder."""

    def write(content: str | bytes | Sequence[str], name: str = "CoLA/train.tsv") -> Path:
        if not isinstance(content, (str, bytes)):
            content = "".join(f"{line}\n" for line in content)
        path = tmp_path / "glue" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / "glue"

    return write


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[object, ...]]]:
    """Let `datasets.load_dataset` return these columns; the calls that it gets are returned."""
    import datasets

    def install(**columns: list[Any]) -> list[tuple[object, ...]]:
        calls: list[tuple[object, ...]] = []

        def load_dataset(*args: object, **options: object) -> Any:
            calls.append((*args, options))
            return datasets.Dataset.from_dict(columns)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return install


def refusal(task: Task, split: str, data_dir: Path | None) -> str:
    with pytest.raises(DataError) as error:
        load_split(task, split, None if data_dir is None else str(data_dir))
    return str(error.value)


class TestFolder:
    def test_cola_has_no_header_line(self, write: Write) -> None:
        root = write(COLA_LINES)
        split = load_split(COLA, "train", str(root))
        assert split.texts == (("The sailors rode the breeze.",), ("The rode sailors.",), ("They sank.",))
        assert split.labels.dtype == np.int64
        assert split.labels.tolist() == [1, 0, 1]
        assert split.source == str(root / "CoLA" / "train.tsv")
        assert len(split) == 3

    def test_stsb_has_one(self, write: Write) -> None:
        split = load_split(STSB, "train", str(write([STSB_HEADER, *STSB_LINES], "STS-B/train.tsv")))
        assert split.texts == (("A man sings.", "A man is singing."), ("A cat.", "Two dogs."))
        assert split.labels.dtype == np.float32
        assert split.labels.tolist() == [5.0, pytest.approx(0.4)]

    def test_columns_are_found_by_their_names(self, write: Write) -> None:
        lines = ["score\tsentence2\tsentence1", "5\tb\ta", "1\td\tc"]
        split = load_split(STSB, "train", str(write(lines, "STS-B/train.tsv")))
        assert split.texts == (("a", "b"), ("c", "d"))

    def test_a_double_quote_is_a_character_like_any_other(self, write: Write) -> None:
        lines = ['x\t1\t\t"Quoted," she said.', 'x\t0\t\tA stray " here', 'x\t1\t\tand "one there']
        split = load_split(COLA, "train", str(write(lines)))
        assert [row[0] for row in split.texts] == [line.split("\t")[3] for line in lines]

    def test_texts_are_stripped(self, write: Write) -> None:
        split = load_split(COLA, "train", str(write(["x\t1\t\t  Spaces around. \u00a0", "x\t0\t\tNone."])))
        assert split.texts[0] == ("Spaces around.",)

    @pytest.mark.parametrize(
        "content",
        [
            b"\xef\xbb\xbf" + "\n".join(COLA_LINES).encode(),
            "\r\n".join(COLA_LINES).encode() + b"\r\n",
            "\n".join(COLA_LINES).encode() + b"\n\n\n",
            "\n".join(COLA_LINES).encode(),
        ],
        ids=["BOM", "CRLF", "blank lines at the end", "no newline at the end"],
    )
    def test_harmless_differences_change_nothing(self, write: Write, content: bytes) -> None:
        plain = load_split(COLA, "train", str(write(COLA_LINES)))
        other = load_split(COLA, "train", str(write(content)))
        assert other.texts == plain.texts
        assert other.fingerprint == plain.fingerprint

    def test_crlf_after_a_header(self, write: Write) -> None:
        content = "\r\n".join([STSB_HEADER, *STSB_LINES]) + "\r\n"
        assert len(load_split(STSB, "train", str(write(content, "STS-B/train.tsv")))) == 2

    @pytest.mark.parametrize("inside", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c"])
    def test_only_a_newline_ends_a_line(self, write: Write, inside: str) -> None:
        split = load_split(COLA, "train", str(write([f"x\t1\t\tone{inside}line", *COLA_LINES])))
        assert split.texts[0] == (f"one{inside}line",)

    @pytest.mark.parametrize("folder", ["CoLA", "cola", "COLA"])
    @pytest.mark.parametrize("file", ["dev.tsv", "validation.tsv"])
    def test_names_of_folder_and_file(self, write: Write, folder: str, file: str) -> None:
        assert len(load_split(COLA, "dev", str(write(COLA_LINES, f"{folder}/{file}")))) == 3

    @pytest.mark.parametrize("folder", ["STS-B", "sts-b", "stsb", "STSB"])
    def test_names_of_stsb(self, write: Write, folder: str) -> None:
        assert len(load_split(STSB, "dev", str(write([STSB_HEADER, *STSB_LINES], f"{folder}/dev.tsv")))) == 2

    def test_dev_comes_before_validation(self, write: Write) -> None:
        write(COLA_LINES, "CoLA/validation.tsv")
        assert len(load_split(COLA, "dev", str(write(COLA_LINES[:2], "CoLA/dev.tsv")))) == 2

    def test_a_home_folder_is_expanded(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(write(COLA_LINES).parent))
        assert len(load_split(COLA, "train", "~/glue")) == 3


class TestRefusals:
    """Each message names the place, what was there, and what is allowed."""

    def test_wrong_number_of_fields(self, write: Write) -> None:
        message = refusal(COLA, "train", write([*COLA_LINES, "gj04\t1\tNo mark."]))
        assert "CoLA/train.tsv, line 4: 3 tab-separated fields, but 4 are needed: source, label, mark" in message

    def test_a_blank_line_among_the_rows(self, write: Write) -> None:
        assert "line 2: 1 tab-separated fields" in refusal(COLA, "train", write([COLA_LINES[0], "", COLA_LINES[1]]))

    def test_the_header_counts_as_line_one(self, write: Write) -> None:
        message = refusal(STSB, "dev", write([STSB_HEADER, *STSB_LINES, "2\tnews"], "STS-B/dev.tsv"))
        assert "STS-B/dev.tsv, line 4: 2 tab-separated fields, but 5 are needed" in message

    def test_invalid_utf8(self, write: Write) -> None:
        content = "\n".join(COLA_LINES).encode() + "\nx\t1\t\tcaf\u00e9".encode("latin-1")
        message = refusal(COLA, "train", write(content))
        assert "CoLA/train.tsv, line 4: byte 0xe9 in sentence is not valid UTF-8" in message

    @pytest.mark.parametrize("label", ["2", "-2", "1.0", "", "Acceptable", "\u0661"])
    def test_a_label_that_is_no_class(self, write: Write, label: str) -> None:
        message = refusal(COLA, "train", write([*COLA_LINES, f"x\t{label}\t\tText."]))
        allowed = "is not one of: 0 (unacceptable), 1 (acceptable)"
        assert f"CoLA/train.tsv, line 4: label {label!r} {allowed}" in message

    @pytest.mark.parametrize("score", ["five", "", "4,5"])
    def test_a_score_that_is_no_number(self, write: Write, score: str) -> None:
        lines = [STSB_HEADER, *STSB_LINES, f"2\tnews\ta\tb\t{score}"]
        message = refusal(STSB, "train", write(lines, "STS-B/train.tsv"))
        assert f"STS-B/train.tsv, line 4: score {score!r} is not a number" in message

    @pytest.mark.parametrize("score", ["5.001", "-0.5", "nan", "inf"])
    def test_a_score_out_of_range(self, write: Write, score: str) -> None:
        lines = [STSB_HEADER, *STSB_LINES, f"2\tnews\ta\tb\t{score}"]
        message = refusal(STSB, "train", write(lines, "STS-B/train.tsv"))
        assert f"STS-B/train.tsv, line 4: score {score!r} is not between 0 and 5" in message

    def test_without_a_known_range_a_target_must_still_be_finite(self, write: Write) -> None:
        task = dataclasses.replace(STSB, target_range=None)
        root = write([STSB_HEADER, *STSB_LINES, "2\tnews\ta\tb\t-700"], "STS-B/train.tsv")
        assert load_split(task, "train", str(root)).labels[-1] == -700
        root = write([STSB_HEADER, *STSB_LINES, "2\tnews\ta\tb\tinf"], "STS-B/train.tsv")
        assert "line 4: score 'inf'" in refusal(task, "train", root)

    @pytest.mark.parametrize("content", ["", "\n", "\ufeff\n"])
    def test_an_empty_file(self, write: Write, content: str) -> None:
        assert "CoLA/train.tsv: the file is empty" in refusal(COLA, "train", write(content))

    def test_a_header_without_rows(self, write: Write) -> None:
        message = refusal(STSB, "dev", write([STSB_HEADER], "STS-B/dev.tsv"))
        assert re.search(r"STS-B/dev\.tsv: no rows", message)

    def test_a_missing_column(self, write: Write) -> None:
        message = refusal(STSB, "dev", write(["index\tsentence1\tscore", "0\ta\t1"], "STS-B/dev.tsv"))
        assert "line 1: no column 'sentence2'; the columns found are: index, sentence1, score" in message

    @pytest.mark.parametrize("blank", ["", "  ", "\u00a0"])
    def test_an_empty_sentence(self, write: Write, blank: str) -> None:
        assert "CoLA/train.tsv, line 4: sentence is empty" in refusal(
            COLA, "train", write([*COLA_LINES, f"x\t1\t\t{blank}"])
        )
        lines = [STSB_HEADER, STSB_LINES[0], f"1\tnews\ta\t{blank}\t3"]
        message = refusal(STSB, "dev", write(lines, "STS-B/dev.tsv"))
        assert "STS-B/dev.tsv, line 3: sentence2 is empty" in message

    @pytest.mark.parametrize(("rows", "right"), [(2, 3), (4, 3)])
    def test_a_wrong_size_is_refused_with_its_usual_cause(self, write: Write, rows: int, right: int) -> None:
        task = dataclasses.replace(COLA, sizes={"train": right})
        message = refusal(task, "train", write((COLA_LINES * 2)[:rows]))
        assert f"CoLA/train.tsv: {rows} rows, but CoLA's train split has {right}." in message
        assert "double quotes" in message
        assert "csv.QUOTE_NONE" in message
        assert message.count("\ntasks:\n- ") == 1

    def test_a_wrong_size_comes_with_the_lines_that_train_on_it_all_the_same(self, write: Write) -> None:
        lines = [*STSB_LINES, *STSB_LINES]
        root = write([STSB_HEADER, *lines], "STS-B/train.tsv")
        write([STSB_HEADER, *lines], "STS-B/dev.tsv")
        message = refusal(dataclasses.replace(STSB, sizes={"train": 9999}), "train", root)
        pasted = "tasks:" + message.partition("\ntasks:")[2]
        head = {"method": "head", "learning_rate": 1e-3}
        study = Study.from_dict({**yaml.safe_load(pasted), "name": "s", "seeds": [0], "methods": [head]})
        _, splits = load_task(study.task("my-stsb"))
        assert [len(split) for split in splits.values()] == [len(lines)] * 2

    def test_files_without_a_header_are_said_to_need_one(self, write: Write) -> None:
        message = refusal(dataclasses.replace(COLA, sizes={"train": 9999}), "train", write(COLA_LINES))
        assert "first line with the names of their columns, tabs between: source, label, mark, sentence:\n" in message

    def test_one_class_only(self, write: Write) -> None:
        lines = [COLA_LINES[0], COLA_LINES[2]]
        assert "in all 2 rows the label is 1" in refusal(COLA, "train", write(lines))
        assert len(load_split(COLA, "dev", str(write(lines, "CoLA/dev.tsv")))) == 2

    def test_one_target_only(self, write: Write) -> None:
        lines = [STSB_HEADER, STSB_LINES[0], STSB_LINES[0]]
        assert "in all 2 rows the target is 5" in refusal(STSB, "train", write(lines, "STS-B/train.tsv"))

    def test_a_data_dir_that_is_no_folder(self, tmp_path: Path) -> None:
        message = refusal(COLA, "train", tmp_path / "nowhere")
        assert f"data_dir: {tmp_path / 'nowhere'} is not a folder" in message
        assert "CoLA/train.tsv and CoLA/dev.tsv" in message

    def test_a_data_dir_without_the_task(self, write: Write) -> None:
        root = write([STSB_HEADER, *STSB_LINES], "STS-B/train.tsv")
        assert f"data_dir: {root} holds nothing for task cola, but: STS-B" in refusal(COLA, "train", root)

    def test_a_folder_without_the_split(self, write: Write) -> None:
        message = refusal(COLA, "dev", write(COLA_LINES))
        assert "CoLA: no dev.tsv or validation.tsv for the dev split of task cola" in message

    def test_an_unknown_split(self) -> None:
        assert "'tests' is not one of: train, dev, test." in refusal(COLA, "tests", None)


class TestOrderOfSources:
    def test_data_dir_comes_first(self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = write(COLA_LINES)
        monkeypatch.setenv("MANYTUNE_GLUE_DIR", str(tmp_path / "elsewhere"))
        assert load_split(COLA, "train", str(root)).source == str(root / "CoLA" / "train.tsv")

    def test_then_the_environment(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        root = write(COLA_LINES)
        monkeypatch.setenv("MANYTUNE_GLUE_DIR", str(root))
        assert load_split(COLA, "train").source == str(root / "CoLA" / "train.tsv")

    def test_a_home_folder_in_the_environment_is_expanded(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(write(COLA_LINES).parent))
        monkeypatch.setenv("MANYTUNE_GLUE_DIR", "~/glue")
        assert len(load_split(COLA, "train")) == 3

    @pytest.mark.parametrize("variable", [None, "", "other"])
    def test_then_the_hub(self, write: Write, hub: Any, monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
        if variable is not None:  # a folder that does not hold the task
            root = write([STSB_HEADER, *STSB_LINES], "STS-B/train.tsv")
            monkeypatch.setenv("MANYTUNE_GLUE_DIR", variable and str(root))
        calls = hub(sentence=["One.", "Two."], label=[0, 1])
        assert load_split(COLA, "dev").source == "hub:nyu-mll/glue"
        assert calls == [("nyu-mll/glue", "cola", {"split": "validation"})]


class TestHub:
    """What is done with what the hub gives; tests/cli/test_hub.py goes through its protocol."""

    def test_rows_are_those_of_the_folder(self, write: Write, hub: Any) -> None:
        local = load_split(STSB, "train", str(write([STSB_HEADER, *STSB_LINES], "STS-B/train.tsv")))
        first, second = map(list, zip(*local.texts, strict=True))
        hub(sentence1=first, sentence2=second, label=[5.0, 0.4], idx=[0, 1])
        split = load_split(STSB, "train")
        assert split.texts == local.texts
        assert split.labels.tolist() == local.labels.tolist()
        assert split.fingerprint == local.fingerprint

    @pytest.mark.parametrize(
        ("task", "columns"),
        [
            (COLA, {"sentence": ["a", "b"], "label": [1, -1]}),
            (STSB, {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1.0, -1.0]}),
        ],
    )
    def test_unlabelled_rows_are_refused(self, hub: Any, task: Task, columns: dict[str, list[Any]]) -> None:
        hub(**columns)
        message = refusal(task, "dev", None)
        assert "'validation', row 2: label -1 marks a row without a label" in message

    def test_a_missing_label_is_refused(self, hub: Any) -> None:
        hub(sentence=["a", "b"], label=[1, None])
        assert "row 2: label None is not one of" in refusal(COLA, "dev", None)

    def test_a_missing_text_is_refused(self, hub: Any) -> None:
        hub(sentence=["a", None], label=[1, 0])
        assert "row 2: sentence is empty" in refusal(COLA, "dev", None)

    def test_a_missing_column_is_refused(self, hub: Any) -> None:
        hub(text=["a", "b"], label=[1, 0])
        message = refusal(COLA, "dev", None)
        assert "nyu-mll/glue (cola), split 'validation': no column 'sentence'" in message
        assert "the columns found are: text, label" in message

    def test_sizes_are_checked(self, hub: Any) -> None:
        hub(sentence=["a", "b"], label=[1, 0])
        assert "hub:nyu-mll/glue: 2 rows, but CoLA's dev split has 1,043" in refusal(TASKS["cola"], "dev", None)

    @pytest.mark.parametrize(
        "error",
        [ConnectionError("Couldn't\nreach it"), ValueError("no config"), OSError(28, "No space left")],
    )
    def test_whatever_fails_ends_in_one_message_with_the_ways_out(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        import datasets

        def fail(*_args: object, **_options: object) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        monkeypatch.setenv("MANYTUNE_GLUE_DIR", str(write(COLA_LINES)))
        message = refusal(STSB, "train", None)
        assert f"({type(error).__name__}: {error})".splitlines()[0] in message
        assert "which holds no folder STS-B" in message
        for way_out in ("data_dir", "MANYTUNE_GLUE_DIR", "builtin-similarity", "STS-B/dev.tsv"):
            assert way_out in message

    @pytest.mark.parametrize("bars", [True, False])
    def test_loading_is_quiet_and_leaves_the_settings_as_they_were(
        self, monkeypatch: pytest.MonkeyPatch, bars: bool
    ) -> None:
        import datasets

        def settings() -> tuple[bool, int]:
            return not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()

        during = []

        def load_dataset(*_args: object, **_options: object) -> Any:
            during.append(settings())
            raise ConnectionError

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        datasets.logging.set_verbosity_info()
        (datasets.enable_progress_bars if bars else datasets.disable_progress_bars)()
        try:
            refusal(COLA, "dev", None)
            assert during == [(False, datasets.logging.ERROR)]
            assert settings() == (bars, datasets.logging.INFO)
        finally:
            datasets.logging.set_verbosity_warning()
            datasets.enable_progress_bars()


class TestFingerprint:
    def test_it_stays_the_same_from_version_to_version(self, write: Write) -> None:
        assert load_split(COLA, "train", str(write(COLA_LINES))).fingerprint == (
            "863418a4473dc2f72e14bff8f0b86b660f354f4ee9371603ed4fc6623497990e"
        )

    def test_it_tells_every_change(self, write: Write) -> None:
        def of(*lines: str) -> str:
            return load_split(STSB, "dev", str(write([STSB_HEADER, *lines], "STS-B/dev.tsv"))).fingerprint

        a, b = "0\tn\tab\tc\t1", "0\tn\tde\tf\t2"
        variants = [
            of(a, b),
            of(b, a),  # another order
            of(a),
            of("0\tn\ta\tbc\t1", b),  # the same letters, cut elsewhere
            of("0\tn\tab\tc\t1.5", b),
            of("0\tn\tab\tC\t1", b),
        ]
        assert len(set(variants)) == len(variants)
        assert of(a, b) == of("7\tother\tab \tc\t1.000", b)  # nothing that a model would see


@pytest.mark.parametrize("name", ["builtin-acceptability", "builtin-similarity"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_the_built_in_tasks_need_nothing(name: str, split: str) -> None:
    task = TASKS[name]
    loaded = load_split(task, split, "/nowhere")
    assert loaded.source == "builtin"
    assert {len(row) for row in loaded.texts} == {len(task.text_columns)}
    assert loaded.labels.dtype == (np.int64 if task.kind == "classification" else np.float32)
    assert load_split(task, split).fingerprint == loaded.fingerprint


class TestRealData:
    @pytest.mark.parametrize(("name", "train", "dev"), [("cola", 8551, 1043), ("stsb", 5749, 1500)])
    def test_sizes(self, glue_dir: Path, name: str, train: int, dev: int) -> None:
        assert len(load_split(TASKS[name], "train", str(glue_dir))) == train
        assert len(load_split(TASKS[name], "dev", str(glue_dir))) == dev

    def test_labels(self, glue_dir: Path) -> None:
        assert load_split(TASKS["cola"], "train", str(glue_dir)).labels.mean() == pytest.approx(0.704, abs=5e-4)
        scores = load_split(TASKS["stsb"], "train", str(glue_dir)).labels
        assert (scores.min(), scores.max()) == (0, 5)

    @pytest.mark.parametrize(("split", "left"), [("train", 5706), ("dev", 1465)])
    def test_rows_lost_by_a_quoting_reader_are_noticed(
        self, glue_dir: Path, write: Write, split: str, left: int
    ) -> None:
        import pandas as pd

        original = glue_dir / "STS-B" / f"{split}.tsv"
        assert len(pd.read_csv(original, sep="\t", on_bad_lines="skip")) == left
        lines = original.read_text(encoding="utf-8").split("\n")[: left + 1]
        message = refusal(TASKS["stsb"], split, write(lines, f"STS-B/{split}.tsv"))
        assert f"{left:,} rows, but STS-B's {split} split has" in message
        assert str(left) in message.split("usual cause")[1]


def bert_like() -> Any:
    """A WordPiece tokenizer with BERT's form: [CLS] a [SEP] b [SEP], token types 0 and 1."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [*"abcdefg.,!", *(f"##{letter}" for letter in "abcdefg")]
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[arg-type]
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def roberta_like() -> Any:
    """A byte-level BPE tokenizer with RoBERTa's form: <s> a </s></s> b </s>, no token types."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", *letters, "Ġa", "bc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("b", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


MAKERS = {"bert": bert_like, "roberta": roberta_like}


@functools.cache
def tokenizer_of(kind: str) -> Any:
    return MAKERS[kind]()


SEPARATORS = {"bert": ("[CLS]", "[SEP]", " [SEP] "), "roberta": ("<s>", "</s>", " </s></s> ")}


def make(rows: Sequence[tuple[str, ...]]) -> Split:
    return Split(tuple(rows), np.arange(len(rows)), "", "test")


def row(encoded: Encoded, index: int) -> tuple[list[int], list[int]]:
    at = slice(encoded.offsets[index], encoded.offsets[index + 1])
    return encoded.ids[at].tolist(), encoded.types[at].tolist()


texts = st.text("abcdefg.,! é", min_size=1, max_size=25).map(str.strip).filter(bool)
singles = st.lists(st.tuples(texts), min_size=1, max_size=6)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)


class TestEncode:
    @pytest.mark.parametrize("kind", MAKERS)
    @given(rows=singles | pairs, max_length=st.integers(6, 40))
    def test_native_is_the_tokenizers_own(self, kind: str, rows: list[Any], max_length: int) -> None:
        tokenizer = tokenizer_of(kind)
        encoded = encode(make(rows), tokenizer, template="native", max_length=max_length)
        assert encoded.size == len(rows) == len(encoded.lengths)
        for index, texts in enumerate(rows):
            alone = tokenizer(*texts, truncation="longest_first", max_length=max_length)
            types = alone.get("token_type_ids", [0] * len(alone["input_ids"]))
            assert row(encoded, index) == (alone["input_ids"], types)
        assert encoded.truncated == sum(len(tokenizer(*texts)["input_ids"]) > max_length for texts in rows)

    @pytest.mark.parametrize("kind", MAKERS)
    @given(rows=singles | pairs)
    def test_spaced_is_the_written_form_tokenized_as_it_stands(self, kind: str, rows: list[Any]) -> None:
        tokenizer, (cls, sep, between) = tokenizer_of(kind), SEPARATORS[kind]
        encoded = encode(make(rows), tokenizer, template="spaced", max_length=512)
        assert encoded.truncated == 0
        for index, texts in enumerate(rows):
            written = f"{cls} {between.join(texts)} {sep}"
            assert row(encoded, index)[0] == tokenizer(written, add_special_tokens=False)["input_ids"]

    @given(rows=singles | pairs, max_length=st.integers(6, 40))
    def test_spaces_are_nothing_to_bert(self, rows: list[Any], max_length: int) -> None:
        """So ids, types and every cut of the spaced form must be those of the native one."""
        native, spaced = (
            encode(make(rows), tokenizer_of("bert"), template=template, max_length=max_length)
            for template in ("native", "spaced")
        )
        assert spaced.ids.tolist() == native.ids.tolist()
        assert spaced.types.tolist() == native.types.tolist()
        assert spaced.offsets.tolist() == native.offsets.tolist()
        assert spaced.truncated == native.truncated

    @given(rows=singles | pairs, max_length=st.integers(6, 40))
    def test_a_cut_spaced_row_keeps_its_separators_and_both_beginnings(self, rows: list[Any], max_length: int) -> None:
        tokenizer = tokenizer_of("roberta")
        whole, cut = (
            encode(make(rows), tokenizer, template="spaced", max_length=length) for length in (512, max_length)
        )
        assert cut.truncated == int((whole.lengths > max_length).sum())
        assert cut.lengths.tolist() == np.minimum(whole.lengths, max_length).tolist()
        assert not cut.types.any()
        for index in range(len(rows)):
            before, after = row(whole, index)[0], row(cut, index)[0]
            assert [token for token in after if token in (0, 2)] == [token for token in before if token in (0, 2)]
            assert after[-1] == 2
            for one, other in zip(_sentences(before), _sentences(after), strict=True):
                assert other
                assert one[: len(other)] == other

    def test_the_longer_sentence_of_a_pair_is_cut_first(self) -> None:
        split = make([("a" * 3, "b" * 20), ("a" * 20, "b" * 3), ("a" * 20, "b" * 20), ("a", "b")])
        encoded = encode(split, tokenizer_of("bert"), template="spaced", max_length=14)
        kept = [[len(part) for part in _sentences(row(encoded, at)[0], cls=2, sep=3)] for at in range(4)]
        assert kept == [[3, 8], [8, 3], [5, 6], [1, 1]]
        assert encoded.truncated == 3

    def test_token_types_tell_the_sentences_of_a_pair_apart(self) -> None:
        encoded = encode(make([("ab", "c")]), tokenizer_of("bert"), template="spaced", max_length=512)
        assert row(encoded, 0)[1] == [0, 0, 0, 0, 1, 1]

    @pytest.mark.parametrize("template", ["native", "spaced"])
    def test_layout(self, template: str) -> None:
        encoded = encode(make([("a b",), ("c",)]), tokenizer_of("bert"), template=template, max_length=512)
        assert encoded.offsets.tolist() == [0, 4, 7]
        assert encoded.lengths.tolist() == [4, 3]
        assert encoded.labels.tolist() == [0, 1]
        assert {array.dtype for array in (encoded.ids, encoded.types, encoded.offsets)} == {np.dtype(np.int64)}
        assert encoded.ids.shape == encoded.types.shape == (7,)

    @pytest.mark.parametrize("template", ["native", "spaced"])
    def test_a_cut_is_reported_by_its_count_and_not_by_a_warning(
        self, template: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import tokenization_utils_base

        warnings: list[object] = []
        monkeypatch.setattr(tokenization_utils_base.logger, "warning", lambda *args: warnings.append(args))
        tokenizer = bert_like()
        tokenizer.model_max_length = 8
        encoded = encode(make([("a b c d e f g",) * 2]), tokenizer, template=template, max_length=8)
        assert encoded.truncated == 1
        assert not warnings

    @pytest.mark.parametrize("template", ["native", "spaced"])
    def test_many_rows_take_few_calls(self, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
        tokenizer = bert_like()
        calls = []
        call = type(tokenizer).__call__

        def counted(self: Any, *args: Any, **options: Any) -> Any:
            calls.append(args)
            return call(self, *args, **options)

        monkeypatch.setattr(type(tokenizer), "__call__", counted)
        encode(make([("a b c d e f g", "a")] * 500), tokenizer, template=template, max_length=8)
        assert 1 <= len(calls) <= 4

    def test_rows_are_cut_a_few_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The tokenizers library keeps all pieces that a call cuts off: of thousands of rows they are gigabytes."""
        tokenizer = bert_like()
        cutting = []
        call = type(tokenizer).__call__

        def counted(self: Any, *args: Any, **options: Any) -> Any:
            if "truncation" in options:
                cutting.append(len(args[0]))
            return call(self, *args, **options)

        monkeypatch.setattr(type(tokenizer), "__call__", counted)
        rows = [("a b c d e f g", "a" * (1 + at % 7)) for at in range(600)]
        encoded = encode(make(rows), tokenizer, template="native", max_length=8)
        assert sum(cutting) == encoded.truncated == 600
        assert max(cutting) <= 256
        for at in (0, 255, 256, 599):
            alone = call(tokenizer, *rows[at], truncation="longest_first", max_length=8)
            assert row(encoded, at) == (alone["input_ids"], alone["token_type_ids"])

    @pytest.mark.parametrize("template", ["native", "spaced"])
    @pytest.mark.parametrize(("kind", "texts", "least"), [("bert", ("a",), 3), ("roberta", ("a", "b"), 6)])
    def test_no_room_for_the_sentences(self, template: str, kind: str, texts: tuple[str, ...], least: int) -> None:
        with pytest.raises(StudyError, match=rf"max_length: {least - 1} tokens .* at least {least}"):
            encode(make([texts]), tokenizer_of(kind), template=template, max_length=least - 1)
        assert encode(make([texts]), tokenizer_of(kind), template=template, max_length=least).lengths[0] >= least

    def test_an_unknown_template(self) -> None:
        with pytest.raises(StudyError, match=r"'spced' is not one of: native, spaced\. Did you"):
            encode(make([("a",)]), tokenizer_of("bert"), template="spced", max_length=8)

    def test_a_tokenizer_without_separators(self) -> None:
        tokenizer = bert_like()
        tokenizer.sep_token = None
        with pytest.raises(ModelError, match="no cls and sep tokens") as error:
            encode(make([("a",)]), tokenizer, template="spaced", max_length=8)
        assert "use template: native" in str(error.value)

    def test_a_tokenizer_whose_pairs_have_no_separator(self) -> None:
        from tokenizers import processors

        tokenizer = bert_like()
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 2)]
        )
        with pytest.raises(ModelError, match="Its form of a pair is not"):
            encode(make([("a",)]), tokenizer, template="spaced", max_length=8)


def _sentences(ids: list[int], cls: int = 0, sep: int = 2) -> list[list[int]]:
    """The tokens between the special ones."""
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == sep:
            parts.append([])
        elif token != cls:
            parts[-1].append(token)
    return [part for part in parts if part]


@pytest.fixture(scope="module")
def roberta(roberta_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(roberta_dir)


class TestRealTokenizers:
    @pytest.mark.parametrize(
        ("template", "texts", "tokens"),
        [
            ("native", ("Yes, she did.",), "<s> Yes , Ġshe Ġdid . </s>"),
            ("spaced", ("Yes, she did.",), "<s> ĠYes , Ġshe Ġdid . Ġ </s>"),
            ("native", ("Yes.", "No."), "<s> Yes . </s> </s> No . </s>"),
            ("spaced", ("Yes.", "No."), "<s> ĠYes . Ġ </s> </s> ĠNo . Ġ </s>"),
        ],
    )
    def test_templates_of_roberta(self, roberta: Any, template: str, texts: tuple[str, ...], tokens: str) -> None:
        encoded = encode(make([texts]), roberta, template=template, max_length=512)
        assert roberta.convert_ids_to_tokens(encoded.ids) == tokens.split()
        assert not encoded.types.any()

    @pytest.mark.parametrize(("name", "mean", "longest"), [("cola", 11.4, 47), ("stsb", 29.1, 125)])
    def test_lengths_of_the_real_data(self, roberta: Any, glue_dir: Path, name: str, mean: float, longest: int) -> None:
        split = load_split(TASKS[name], "train", str(glue_dir))
        encoded = encode(split, roberta, template="native", max_length=512)
        assert encoded.lengths.mean() == pytest.approx(mean, abs=0.05)
        assert encoded.lengths.max() == longest
        assert encoded.truncated == 0
        cut = encode(split, roberta, template="native", max_length=20)
        assert cut.truncated == int((encoded.lengths > 20).sum()) > 0
        assert cut.lengths.max() == 20

    def test_minilm(self, minilm_dir: Path) -> None:
        """Its tokenizer file asks for padding and a cut at 128 tokens; neither may happen here."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
        split = make([("Yes, she did.", "No."), ("word " * 300, "No.")])
        native, spaced = (
            encode(split, tokenizer, template=template, max_length=512) for template in ("native", "spaced")
        )
        words = tokenizer.convert_ids_to_tokens(row(native, 0)[0])
        assert words == ["[CLS]", "yes", ",", "she", "did", ".", "[SEP]", "no", ".", "[SEP]"]
        assert row(native, 0)[1] == [0] * 7 + [1] * 3
        assert native.lengths.tolist() == [10, 305]
        assert spaced.ids.tolist() == native.ids.tolist()
        assert spaced.types.tolist() == native.types.tolist()


SEEDS = st.integers(0, 2**63)


class TestTrainSplit:
    @given(n=st.integers(2, 300), seed=SEEDS, share=st.floats(0.01, 0.9))
    def test_it_is_a_partition(self, n: int, seed: int, share: float) -> None:
        train, selecting = train_split(n, seed, share)
        assert sorted([*train, *selecting]) == list(range(n))
        assert train.dtype == selecting.dtype == np.int64
        assert train.tolist() == sorted(train)
        assert selecting.tolist() == sorted(selecting)
        assert len(selecting) == min(max(1, int(n * share + 0.5)), n - 1)

    @given(
        labels=st.lists(st.integers(0, 3), min_size=4, max_size=300).filter(
            lambda labels: any(labels.count(label) > 1 for label in labels)
        ),
        seed=SEEDS,
        other=SEEDS,
        share=st.floats(0.05, 0.5),
    )
    def test_classes_are_split_alike(self, labels: list[int], seed: int, other: int, share: float) -> None:
        classes = np.array(labels)
        train, selecting = train_split(len(labels), seed, share, classes)
        assert sorted([*train, *selecting]) == list(range(len(labels)))
        for label in set(labels):
            rows = labels.count(label)
            chosen = int((classes[selecting] == label).sum())
            assert chosen == (0 if rows == 1 else min(max(1, int(rows * share + 0.5)), rows - 1))
        sizes = [np.bincount(classes[part], minlength=4).tolist() for part in (train, selecting)]
        again = train_split(len(labels), other, share, classes)
        assert [np.bincount(classes[part], minlength=4).tolist() for part in again] == sizes

    def test_a_tenth_by_default(self) -> None:
        train, selecting = train_split(8551, 0)
        assert (len(train), len(selecting)) == (7696, 855)

    def test_numbers_are_not_classes(self) -> None:
        labels = np.linspace(0, 5, 50, dtype=np.float32)
        with_labels, without = train_split(50, 3, labels=labels), train_split(50, 3)
        assert with_labels[1].tolist() == without[1].tolist()

    def test_the_seed_decides_and_nothing_else(self) -> None:
        first = train_split(200, 5)[1].tolist()
        np.random.default_rng(5).random(10)
        assert train_split(200, 5)[1].tolist() == first
        assert len({tuple(train_split(200, seed)[1].tolist()) for seed in range(50)}) == 50

    def test_every_row_has_its_chance(self) -> None:
        chosen = np.concatenate([train_split(40, seed)[1] for seed in range(1000)])
        counts = np.bincount(chosen, minlength=40)
        assert counts.sum() == 4000
        assert 60 < counts.min() <= counts.max() < 140  # 100 expected, standard deviation 9.5

    def test_selection_and_epoch_order_are_drawn_apart(self) -> None:
        selecting = train_split(200, 7)[1]
        assert set(epoch_order(200, 7, 0)[:20].tolist()) != set(selecting.tolist())

    @pytest.mark.parametrize("labels", [None, np.array([0])])
    def test_too_few_rows(self, labels: Array | None) -> None:
        with pytest.raises(DataError, match="use selection: dev"):
            train_split(1, 0, labels=labels)
        with pytest.raises(DataError, match="no class has two rows among the 2 training rows"):
            train_split(2, 0, labels=np.array([0, 1]))

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
    def test_a_share_is_between_0_and_1(self, share: float) -> None:
        with pytest.raises(ValueError, match="above 0 and below 1"):
            train_split(10, 0, share)


class TestEpochOrder:
    @given(n=st.integers(0, 300), seed=SEEDS, epoch=st.integers(0, 10_000))
    def test_it_is_a_permutation(self, n: int, seed: int, epoch: int) -> None:
        order = epoch_order(n, seed, epoch)
        assert order.dtype == np.int64
        assert sorted(order) == list(range(n))

    @given(first=st.tuples(SEEDS, st.integers(0, 100)), second=st.tuples(SEEDS, st.integers(0, 100)))
    def test_seed_and_epoch_each_give_another_one(self, first: tuple[int, int], second: tuple[int, int]) -> None:
        same = epoch_order(50, *first).tolist() == epoch_order(50, *second).tolist()
        assert same == (first == second)

    def test_neighbouring_keys_differ(self) -> None:
        orders = {tuple(epoch_order(20, seed, epoch).tolist()) for seed in range(20) for epoch in range(20)}
        assert len(orders) == 400

    def test_it_stays_the_same_from_version_to_version(self) -> None:
        assert epoch_order(8, 0, 0).tolist() == [7, 4, 2, 6, 5, 0, 1, 3]
        assert epoch_order(8, 1, 2).tolist() == [4, 5, 6, 7, 1, 0, 2, 3]

    def test_orders_of_neighbouring_seeds_and_epochs_are_uncorrelated(self) -> None:
        orders = np.array([[epoch_order(100, seed, epoch) for epoch in range(15)] for seed in range(15)])
        flat = orders.reshape(225, 100).astype(float)
        apart = np.corrcoef(flat)[np.triu_indices(225, 1)]
        assert abs(apart.mean()) < 0.005
        assert apart.std() == pytest.approx(1 / np.sqrt(99), rel=0.05)
        positions = orders.reshape(225, 100).argsort(axis=1).mean(axis=0)
        assert np.abs(positions - 49.5).max() < 4.5 * 28.9 / 15  # standard errors
