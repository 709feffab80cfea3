"""A model whose files claim what cannot be is refused in one sentence, before memory of that size is taken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from manytune.cli.check import check_study
from manytune.cli.dry_run import render_dry_run
from manytune.config import Study
from manytune.data.splits import Split
from manytune.models import loading
from manytune.models.loading import check_weights, load_backbone, load_config, load_tokenizer, model_spec
from manytune.training.workload import encode_split
from manytune.utils.errors import DataError, ManytuneError, ModelError
from study_files import small_study
from tiny import make_tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def tiny(made: Path, tmp_path: Path) -> Path:
    """A BERT that the test may change."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(what: Callable[[], object], *expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        what()
    text = str(caught.value)
    assert text.startswith("model: ")
    assert len(text) < 700
    for each in expected:
        assert each in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**6),
        ("hidden_size", 10**9),
        ("vocab_size", 10**12),
        ("vocab_size", 0),
        ("hidden_size", -32),
        ("num_hidden_layers", "two"),
        ("num_hidden_layers", 2.5),
        ("num_hidden_layers", True),
        ("hidden_size", float("nan")),
        ("intermediate_size", float("inf")),
        ("intermediate_size", "9" * 10_000),
        ("num_attention_heads", [4]),
        ("max_position_embeddings", 10**12),
        ("type_vocab_size", -1),
        ("num_labels", 10**9),
    ],
)
def test_a_figure_that_cannot_be(name: str, value: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_config(tiny, **{name: value})
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", None)  # nothing is made of it
    for use in (lambda: model_spec(str(tiny), 2), lambda: load_backbone(str(tiny), 2)):
        refused(use, f"{name} is ", "it must be a whole number from")


def test_more_parameters_than_memory_holds(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", None)
    set_config(tiny, hidden_size=1 << 17, num_hidden_layers=1000, intermediate_size=1 << 20)
    refused(lambda: load_backbone(str(tiny), 2), "has about 343,", "GB in fp32; this machine has")


def test_no_position_for_a_token(tiny: Path) -> None:
    set_config(tiny, max_position_embeddings=0)
    refused(lambda: model_spec(str(tiny), 2), "max_position_embeddings 0, which leaves no position")


@pytest.mark.parametrize(
    "values", [{"vocab_size": 10**6}, {"num_hidden_layers": 3}, {"max_position_embeddings": 200}], ids=str
)
def test_weights_of_another_model_are_seen_before_they_are_read(values: dict[str, int], tiny: Path) -> None:
    set_config(tiny, **values)
    refused(
        lambda: model_spec(str(tiny), 2), f"the weights of {tiny} do not belong to its config.json", "such as bert."
    )


@pytest.mark.parametrize("value", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq"}])
def test_a_quantized_model(value: dict[str, Any], tiny: Path) -> None:
    set_config(tiny, quantization_config=value)
    refused(lambda: model_spec(str(tiny), 2), "is quantized", "Give the model that it was made from")


def damage_values(folder: Path, value: float) -> None:
    stored = load_file(folder / "model.safetensors")
    stored["encoder.layer.1.output.dense.weight"][3, 4] = value
    save_file(stored, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, tiny: Path) -> None:
    damage_values(tiny, value)
    study = small_study(tiny)
    uses: tuple[Callable[[], object], ...] = (
        lambda: check_weights(str(tiny)),
        lambda: load_backbone(str(tiny), 2),
        lambda: check_study(study),
        lambda: list(render_dry_run(study, "cpu")),
    )
    for use in uses:
        refused(use, "hold NaN or infinity, in ", "encoder.layer.1.output.dense.weight")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(name: str, tiny: Path) -> None:
    (tiny / name).unlink()
    os.mkfifo(tiny / name)
    for use in (load_tokenizer, lambda model: load_backbone(model, 2)):
        refused(lambda use=use: use(str(tiny)), f"{tiny / name} is no regular file")


def test_a_huge_config(tiny: Path) -> None:
    with (tiny / "config.json").open("r+b") as file:
        file.truncate(1 << 30)
    refused(lambda: load_config(str(tiny), 2), "config.json has 1,073,741,824 bytes; at most 16,777,216 are read")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_nested_file(name: str, tiny: Path) -> None:
    (tiny / name).write_text("[" * 100_000)
    refused(lambda: (load_tokenizer(str(tiny)), load_config(str(tiny), 2)), "cannot be loaded")


def test_a_link_to_nowhere(tiny: Path) -> None:
    (tiny / "tokenizer.json").unlink()
    (tiny / "tokenizer.json").symlink_to("nothing")
    refused(lambda: load_tokenizer(str(tiny)), f"cannot read {tiny / 'tokenizer.json'}: No such file")


def test_a_file_that_may_not_be_read_is_not_called_missing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "model.safetensors")  # root may read all
    refused(lambda: load_backbone(str(tiny), 2), f"cannot read {tiny / 'model.safetensors'}: Permission denied")


def in_shards(folder: Path, name: str) -> None:
    shard = "model-00001-of-00001.safetensors"
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(stored, name or shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_in_the_folder_are_read(tiny: Path) -> None:
    in_shards(tiny, "")
    assert load_backbone(str(tiny), 2).model_spec == model_spec(str(tiny), 2)


@pytest.mark.parametrize("how", ["../outside.safetensors", "ABSOLUTE", "LINK"])
def test_shards_elsewhere_are_not(how: str, tiny: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    shutil.copy(tiny / "model.safetensors", outside)
    in_shards(tiny, {"ABSOLUTE": str(outside), "LINK": "link.safetensors"}.get(how, how))
    if how == "LINK":
        (tiny / "link.safetensors").symlink_to(outside)
    for use in (lambda: model_spec(str(tiny), 2), lambda: load_backbone(str(tiny), 2)):
        refused(use, "model.safetensors.index.json names the file ", "outside of the model's folder")


@pytest.mark.parametrize("error", [MemoryError("12345 bytes"), RuntimeError("can't allocate memory: 12345 bytes")])
def test_memory_that_runs_out_is_not_a_missing_file(
    error: Exception, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(loading.AutoModelForSequenceClassification, "from_pretrained", fail)
    refused(lambda: load_backbone(str(tiny), 2), "not enough memory to load the weights", "12345 bytes")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_in_the_hubs_cache_is_named(name: str, tiny: Path) -> None:
    repository = Path(constants.HF_HUB_CACHE) / f"models--some-org--damaged-{name.replace('.', '-')}"
    snapshot = repository / "snapshots" / ("3" * 40)
    shutil.copytree(tiny, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("3" * 40)
    os.truncate(snapshot / name, (snapshot / name).stat().st_size // 2)
    model = repository.name.removeprefix("models--").replace("--", "/")
    refused(
        lambda: (load_config(model, 2), load_tokenizer(model), load_backbone(model, 2)),
        f"{snapshot / name} is damaged: ",
        "Delete it to download it again",
    )


def bare_tokenizer(folder: Path) -> None:
    """A tokenizer without special tokens, and without a token for what it does not know."""
    for path in folder.glob("tokenizer*"):
        path.unlink()
    vocabulary = {character: index for index, character in enumerate("abdgo")}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocabulary, []))).save_pretrained(folder)


def test_rows_without_a_token_are_found_before_training(tiny: Path, tmp_path: Path) -> None:
    bare_tokenizer(tiny)
    (tmp_path / "rows.csv").write_text("text,label\n" + "good,a\nbad,b\n" * 4 + "xyz,a\n")
    study = Study.from_dict(
        {
            "name": "bare",
            "model": str(tiny),
            "tasks": [
                {
                    "name": "own",
                    "train": str(tmp_path / "rows.csv"),
                    "dev": str(tmp_path / "rows.csv"),
                    "text": "text",
                    "label": "label",
                }
            ],
            "seeds": [0],
            "methods": [{"method": "lora", "rank": 2, "learning_rate": 1e-3}],
        }
    )
    parts, tokenizer = model_spec(str(tiny), 2), load_tokenizer(str(tiny))
    rows = Split((("good",), ("xyz",)), np.zeros(2, dtype=np.int64), "", "rows.csv")
    with pytest.raises(DataError, match=r"row 2: the tokenizer of .* makes no token of 'xyz', one of 1 such rows"):
        encode_split(study, parts, tokenizer, rows)
    for use in (lambda: check_study(study), lambda: list(render_dry_run(study, "cpu"))):
        with pytest.raises(ManytuneError, match="row"):
            use()


def add_token(folder: Path, token_id: int) -> None:
    """Give the tokenizer the token `surprising`."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(
        {key: False for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        | {"id": token_id, "content": "surprising"}
    )
    content["model"]["vocab"]["surprising"] = token_id
    path.write_text(json.dumps(content))


def test_a_token_id_that_no_embedding_has(tiny: Path) -> None:
    add_token(tiny, 70_000)
    study = small_study(tiny)
    rows = Split((("a surprising", "thing"),), np.zeros(1, dtype=np.float32), "some", "rows.csv")
    for _ in range(2):  # the second time from the cache

        def use() -> None:
            encode_split(study, model_spec(str(tiny), 1), load_tokenizer(str(tiny)), rows)

        refused(use, "gives the token id 70000, but the backbone has embeddings for 0 to 140 alone")


def test_a_token_id_that_no_vocabulary_reaches(tiny: Path) -> None:
    add_token(tiny, 2**31 + 5)
    refused(lambda: load_tokenizer(str(tiny)), "a token with the id 2147483653", "than 134,217,728 embeddings")


def test_a_decoder_and_what_attends_to_one(tiny: Path) -> None:
    set_config(tiny, add_cross_attention=True)
    refused(lambda: model_spec(str(tiny), 2), "cannot be loaded")
    set_config(tiny, add_cross_attention=False, torch_dtype="float99", dtype="float99")
    refused(lambda: load_backbone(str(tiny), 2), "cannot be loaded")
    assert torch.get_default_dtype() is torch.float32
