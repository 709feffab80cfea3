"""What GLUE's server takes: a zip of eleven TSV files. Write one, and say what is wrong with one.

The names, the columns `index` and `prediction`, and the labels are those of https://gluebenchmark.com/faq.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manytune.data.tasks import GLUE, Task
from manytune.utils.errors import DataError, StoreError
from manytune.utils.files import check_output, output_file

_HEADER = "index\tprediction"
_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold: the same predictions give the same bytes
_MOST_BYTES = 100 << 20  # of one file; the largest of a real submission has 5 MB
_SHOWN = 3  # problems of one file that are named


@dataclass(frozen=True)
class SubmissionFile:
    """One file of a submission."""

    name: str  # its name in the zip
    task: Task  # the task that predicts it
    split: str  # the task's split that is predicted
    in_words: bool = False  # whether classes are written by their names, or by their numbers

    @property
    def rows(self) -> int:
        """How many predictions the server wants."""
        return self.task.sizes[self.split]

    def written(self, prediction: float | None) -> str:
        """A class index or a score as the server takes it; None is a placeholder for a task that was not trained."""
        return self.task.type.glue_text(self.task, prediction, in_words=self.in_words)

    def problem(self, text: str) -> str | None:
        """What is wrong with a prediction, if anything is."""
        return self.task.type.glue_problem(self.task, text, in_words=self.in_words)


FILES: Mapping[str, SubmissionFile] = {
    file.name: file
    for file in (
        SubmissionFile("CoLA.tsv", GLUE["cola"], "test"),
        SubmissionFile("SST-2.tsv", GLUE["sst2"], "test"),
        SubmissionFile("MRPC.tsv", GLUE["mrpc"], "test"),
        SubmissionFile("STS-B.tsv", GLUE["stsb"], "test"),
        SubmissionFile("QQP.tsv", GLUE["qqp"], "test"),
        SubmissionFile("MNLI-m.tsv", GLUE["mnli"], "test", in_words=True),
        SubmissionFile("MNLI-mm.tsv", GLUE["mnli"], "test_mismatched", in_words=True),
        SubmissionFile("QNLI.tsv", GLUE["qnli"], "test", in_words=True),
        SubmissionFile("RTE.tsv", GLUE["rte"], "test", in_words=True),
        SubmissionFile("WNLI.tsv", GLUE["wnli"], "test"),
        SubmissionFile("AX.tsv", GLUE["mnli"], "diagnostic", in_words=True),
    )
}
"""The eleven files by their names; AX, the diagnostic set, is predicted by what was trained on MNLI."""


def write_zip(out: Path, predictions: Mapping[str, Sequence[float]]) -> None:
    """Write a submission, whole or not at all; files without predictions are filled with placeholders.

    `predictions` are class indices or scores by the name of their file, in the order of the test rows. A StoreError
    says that `out` cannot be written, as `refuse_to_replace` does.
    """
    refuse_to_replace(out)
    with output_file(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in FILES.values():
            found = predictions.get(file.name, [None] * file.rows)
            lines = [_HEADER, *(f"{index}\t{file.written(value)}" for index, value in enumerate(found))]
            entry = zipfile.ZipInfo(file.name, date_time=_NO_DATE)
            archive.writestr(entry, "\n".join(lines) + "\n", compress_type=zipfile.ZIP_DEFLATED)


def refuse_to_replace(out: Path) -> None:
    """Refuse, by a StoreError, to write a submission where that cannot be, or over a file that is something else."""
    check_output(out)
    if not out.exists() or not out.stat().st_size:
        return
    try:
        with zipfile.ZipFile(out) as archive:
            ours = not FILES.keys().isdisjoint(archive.namelist())
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        ours = False
    if not ours:
        raise StoreError(f"{out} is there and is no submission to GLUE; give another --out, or delete it.")


def check_zip(path: Path) -> list[str]:
    """What GLUE's server would refuse of a zip, whoever wrote it; a DataError if it cannot be read or is no zip."""
    problems = []
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            for name, file in FILES.items():
                if name not in entries:
                    deep = [each for each in entries if each.endswith(f"/{name}")]
                    where = f" It is in a folder, as {deep[0]}; it must be at the top." if deep else ""
                    problems.append(f"{name} is missing.{where}")
                elif entries[name].file_size > _MOST_BYTES:
                    problems.append(f"{name} has {entries[name].file_size:,} bytes, far more than {file.rows:,} rows.")
                else:
                    found = [f"{name}, {each}" for each in _problems(file, archive.read(name))]
                    more = len(found) - _SHOWN
                    problems += found[:_SHOWN] + ([f"{name}: {more:,} more problems"] if more > 0 else [])
            nested = tuple(f"/{name}" for name in FILES)  # which are named above
            others = [name for name in entries if name not in FILES and not name.endswith(("/", *nested))]
            problems += [f"{name} is no file of a submission." for name in others]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as a zip: {error}") from error
    return problems


def _problems(file: SubmissionFile, content: bytes) -> Iterator[str]:
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        yield "it is not UTF-8"
        return
    if lines[:1] != [_HEADER]:
        yield f"line 1: the header must be index and prediction with a tab between, not {lines[0] if lines else ''!r}"
        return
    for index, line in enumerate(lines[1:]):
        number, _, text = line.partition("\t")
        if number != str(index):
            yield f"line {index + 2}: the index must be {index}, not {number!r}"
        elif problem := file.problem(text):
            yield f"line {index + 2}: {problem}"
    if len(lines) - 1 != file.rows:
        yield f"it has {len(lines) - 1:,} predictions, but {file.rows:,} are wanted"
