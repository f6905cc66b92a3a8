"""What fine-tuning leaves behind converts to the answers of the model as it was trained."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import converters
import infer
from converters.ready import ready
from converters.sources import SourceRequest, open_source
from infer.errors import ConversionError
from tests.text_models import bert_folder

# peft asks transformers by a name that transformers gives up
pytestmark = pytest.mark.filterwarnings("default:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Backbone(nn.Module):
    """A small picture encoder with BatchNorm, as such are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = torch.relu(self.norm(self.conv(x))).mean(-1)
        return hidden


class FineTuned(nn.Module):
    """A frozen backbone with a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.backbone(x))
        return scores


X = torch.randn(4, 4, 9, generator=torch.Generator().manual_seed(3))


def tuned() -> FineTuned:
    """Trained for some steps, in training mode, as a training script leaves it."""
    torch.manual_seed(0)
    model = FineTuned().train()
    model.backbone.requires_grad_(False)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(16, 4, 9) * 3 + 1).square().mean().backward()
        optimizer.step()
    return model


def expected(model: nn.Module, x: torch.Tensor = X) -> np.ndarray:
    """What the caller's own module says in eval mode."""
    model = model.eval()
    with torch.no_grad():
        return np.asarray(model(x).numpy())


def prepared(model: nn.Module) -> tuple[np.ndarray, tuple[str, ...]]:
    """What the module that would be exported says, and the notes."""
    source = open_source(SourceRequest(source=model, name="net", example_inputs={"x": X}))
    with ready(source) as opened, torch.no_grad():
        return np.asarray(opened.module(X).numpy()), opened.notes


def converted(path: Path, model: nn.Module) -> tuple[np.ndarray, tuple[str, ...]]:
    """What the artifact says, and the notes."""
    artifact = converters.convert(model, path / "net.infer", example_inputs={"x": X})
    with infer.load(artifact.path) as session:
        return session.run({"x": X.numpy()})["output"], artifact.manifest.provenance.notes


def test_a_new_head_and_batch_norm_use_what_was_learned(tmp_path: Path) -> None:
    """Left in training mode, a frozen backbone with a new head answers with its running statistics, and
    the caller's module is in training mode again."""
    model = tuned()
    ours, notes = converted(tmp_path, model)
    assert model.training
    assert model.backbone.norm.training
    assert not model.backbone.conv.weight.requires_grad
    assert model.head.weight.requires_grad
    np.testing.assert_allclose(ours, expected(model), atol=1e-6)
    in_training = model.train()(X).detach().numpy()
    assert np.abs(in_training - ours).max() > 0.01
    assert any("training mode" in note for note in notes)


def weight_norm(model: FineTuned) -> None:
    parametrizations.weight_norm(model.backbone.conv)


def spectral_norm(model: FineTuned) -> None:
    parametrizations.spectral_norm(model.head)


def orthogonal(model: FineTuned) -> None:
    parametrizations.orthogonal(model.head)


def old_weight_norm(model: FineTuned) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in many trained models
        nn.utils.weight_norm(model.backbone.conv)


def old_spectral_norm(model: FineTuned) -> None:
    nn.utils.spectral_norm(model.head)


NORMS: list[Callable[[FineTuned], None]] = [
    weight_norm,
    spectral_norm,
    orthogonal,
    old_weight_norm,
    old_spectral_norm,
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [False, True])
def test_computed_weights_are_folded(norm: Callable[[FineTuned], None], training: bool) -> None:
    """Weights that a norm or parametrization computes become plain ones with the very same answers; the
    caller's module keeps its own, and can be trained on."""
    model = tuned()
    norm(model)
    model(X).sum().backward()  # leaves the last result behind, which deepcopy refuses
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours, notes = prepared(model)
    assert any("folded" in note for note in notes)
    after = model.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert model.training is training
    model(X).sum().backward()
    model.load_state_dict(before)  # a spectral norm in training mode has moved
    np.testing.assert_allclose(ours, expected(model), atol=1e-6)


@pytest.mark.slow
def test_folded_weights_convert_where_exporters_cannot(tmp_path: Path) -> None:
    """No exporter has the Householder product of an orthogonal weight; folded, it is a plain product."""
    model = tuned()
    orthogonal(model)
    old_weight_norm(model)
    ours, notes = converted(tmp_path, model)
    np.testing.assert_allclose(ours, expected(model), atol=1e-6)
    assert any(note.startswith("2 weights that the model computed") for note in notes)


def test_half_precision_with_an_old_norm_is_widened() -> None:
    """A bfloat16 model with old-style weight norm, which deepcopy refuses, is widened and folded."""
    model = tuned().eval().bfloat16()
    old_weight_norm(model)
    wide = tuned().eval()
    wide.load_state_dict({k: v.float() for k, v in tuned().bfloat16().state_dict().items()})
    source = open_source(SourceRequest(source=model, name="net", example_inputs={"x": X.bfloat16()}))
    with ready(source) as opened, torch.no_grad():
        ours = opened.module(X).numpy()
    # its norms were rounded to 8 bits, too
    np.testing.assert_allclose(ours, expected(wide), atol=2e-2)


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "compile": torch.compile,
    "data parallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(torch.compile(model)),  # type: ignore[arg-type]
    "the other way": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_are_taken_off(wrap: str) -> None:
    """Models in torch.compile and DataParallel wrappers are opened as what is inside."""
    model = tuned().eval()
    source = open_source(SourceRequest(source=WRAPPERS[wrap](model), name="net", example_inputs={"x": X}))
    assert source.module is model
    assert any("wrapper was taken off" in note for note in source.notes)


@pytest.mark.slow
def test_parts_that_were_compiled_convert(tmp_path: Path) -> None:
    """A compiled backbone inside of a module, and Module.compile, do not stand in the way."""
    model = tuned().eval()
    truth = expected(copy.deepcopy(model))
    model.backbone = torch.compile(model.backbone)  # type: ignore[assignment]
    model.head.compile()
    ours, notes = converted(tmp_path, model)
    np.testing.assert_allclose(ours, truth, atol=1e-6)
    assert any("torch.compile" in note for note in notes)


RENAMED: dict[str, Callable[[str], str]] = {
    "data parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "the other way": lambda name: f"_orig_mod.module.{name}",
    "a compiled part": lambda name: name.replace("backbone.", "backbone._orig_mod."),
}


@pytest.mark.parametrize("kind", RENAMED)
def test_prefixes_of_wrappers_are_taken_off_names(tmp_path: Path, kind: str) -> None:
    """State dicts saved from wrapped models, or with wrapped parts, load into the plain model."""
    model = tuned().eval()
    path = tmp_path / "weights.pt"
    torch.save({RENAMED[kind](name): t for name, t in model.state_dict().items()}, path)
    request = SourceRequest(source=FineTuned(), name="net", example_inputs={"x": X}, weights=path)
    source = open_source(request)
    assert any("was taken o" in note for note in source.notes)
    np.testing.assert_array_equal(expected(source.module), expected(model))


class Wrapper(nn.Module):
    """A model whose own part is called `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.module(x)
        return scores


def test_a_part_called_module_keeps_its_name(tmp_path: Path) -> None:
    """A prefix that the model itself has is no wrapper's."""
    model = Wrapper().eval()
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    request = SourceRequest(source=Wrapper(), name="net", example_inputs={"x": X}, weights=path)
    np.testing.assert_array_equal(expected(open_source(request).module), expected(model))


CURES: list[tuple[Callable[[FineTuned], None], str]] = [
    (weight_norm, r"remove_parametrizations\(\)"),
    (old_weight_norm, r"remove_weight_norm\(\)"),
    (old_spectral_norm, r"remove_spectral_norm\(\)"),
]


@pytest.mark.parametrize(("norm", "cure"), CURES)
def test_weights_of_a_normed_model_say_what_to_do(
    tmp_path: Path, norm: Callable[[FineTuned], None], cure: str
) -> None:
    """A state dict saved with a norm on the model does not fit the plain one; the error names the cure."""
    model = tuned()
    norm(model)
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    request = SourceRequest(source=FineTuned(), name="net", example_inputs={"x": X}, weights=path)
    with pytest.raises(ConversionError, match=cure):
        open_source(request)


def low_rank(model: Any, **settings: Any) -> Any:
    """`model` with a LoRA adapter whose weights are not zero."""
    import peft

    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return adapted.eval()


@pytest.mark.slow
def test_a_model_with_an_adapter_is_merged(tmp_path: Path) -> None:
    """A LoRA adapter is merged into a copy: the artifact answers as the adapted model, which
    stays adapted."""
    plain = tuned().eval()
    adapted = low_rank(copy.deepcopy(plain), target_modules=["head", "conv"])
    truth = expected(adapted)
    assert np.abs(truth - expected(plain)).max() > 0.1
    ours, notes = converted(tmp_path, adapted)
    np.testing.assert_allclose(ours, truth, atol=1e-5)
    assert any("PEFT adapters were merged" in note for note in notes)
    assert any("lora_" in name for name, _ in adapted.named_parameters())
    np.testing.assert_array_equal(expected(adapted), truth)


def test_an_adapter_on_a_part_is_merged() -> None:
    """Adapters may sit on the backbone alone, with or without PEFT's own model around it."""
    import peft

    model = tuned().eval()
    model.backbone = low_rank(model.backbone, target_modules=["conv"])
    ours, _ = prepared(model)
    np.testing.assert_allclose(ours, expected(model), atol=1e-5)
    model = tuned().eval()
    settings = peft.LoraConfig(r=4, target_modules=["head"], init_lora_weights=False)
    peft.inject_adapter_in_model(settings, model)
    ours, notes = prepared(model)
    np.testing.assert_allclose(ours, expected(model), atol=1e-5)
    assert any("PEFT adapters were merged" in note for note in notes)


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, Any]:
    """A PEFT folder of a classifier with a new head, whose base is a plain BERT folder, and the model."""
    import transformers

    base = bert_folder(tmp_path / "base", "NextSentencePrediction")
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    adapted = low_rank(model, task_type="SEQ_CLS", target_modules=["query", "value"])
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", adapted


@pytest.mark.slow
def test_an_adapter_folder_is_merged(adapter: tuple[Path, Any], tmp_path: Path) -> None:
    """A PEFT folder converts with its base's weights, its own head, and its task; a note says so."""
    folder, model = adapter
    artifact = converters.convert(folder, tmp_path / "merged.infer")
    assert artifact.manifest.task is not None
    assert artifact.manifest.task.name == "text-classification"
    assert "the PEFT adapter was merged into the weights" in artifact.manifest.provenance.notes
    ids = torch.randint(1000, 2000, (3, 11), generator=torch.Generator().manual_seed(0))
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": ids * 0}
    with torch.no_grad():
        truth = model(**feeds).logits.numpy()
    with infer.load(artifact.path) as session:
        ours = session.run({name: t.numpy() for name, t in feeds.items()})["logits"]
    np.testing.assert_allclose(ours, truth, atol=1e-5)


def test_an_adapter_without_its_base_says_what_to_do(adapter: tuple[Path, Any]) -> None:
    """If the base is a name of the hub, the error names the entry to change and the way by hand."""
    folder, _ = adapter
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "base_model_name_or_path": "someone/bert"}))
    with pytest.raises(ConversionError, match=r"'someone/bert', which is no folder .*merge_and_unload\(\)"):
        open_source(SourceRequest(source=folder, name="net"))
    path.write_text(json.dumps({**settings, "task_type": None}))
    with pytest.raises(ConversionError, match="task type 'none'; infer knows SEQ_CLS"):
        open_source(SourceRequest(source=folder, name="net"))


def test_an_adapter_that_lacks_its_head_is_refused(adapter: tuple[Path, Any]) -> None:
    """A head that neither base nor adapter has would be random: an error names it."""
    from safetensors.torch import load_file, save_file

    folder, _ = adapter
    path = folder / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "lora_" in k}, path)
    with pytest.raises(ConversionError, match=r"has .*classifier\.weight.*modules_to_save"):
        open_source(SourceRequest(source=folder, name="net"))
    path.unlink()
    with pytest.raises(ConversionError, match=r"lacks adapter_model\.safetensors"):
        open_source(SourceRequest(source=folder, name="net"))


def test_adapter_weights_are_no_weights_of_the_model(adapter: tuple[Path, Any]) -> None:
    """--weights with an adapter's file says to convert its folder."""
    folder, _ = adapter
    weights = folder / "adapter_model.safetensors"
    request = SourceRequest(source=tuned(), name="net", example_inputs={"x": X}, weights=weights)
    with pytest.raises(ConversionError, match="convert the folder that holds its"):
        open_source(request)


def test_prompts_that_cannot_be_merged_say_what_to_do(tmp_path: Path) -> None:
    """Prompt tuning changes the inputs, not the weights: an error says what to convert instead."""
    import peft
    import transformers

    folder = bert_folder(tmp_path / "base", "SequenceClassification")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    settings = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    adapted = peft.get_peft_model(model, settings)
    request = SourceRequest(
        source=adapted, name="net", example_inputs={"input_ids": torch.ones(2, 4).long()}
    )
    with pytest.raises(ConversionError, match="of kind PROMPT_TUNING, which changes what the model is fed"):
        open_source(request)
