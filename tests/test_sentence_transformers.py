"""Folders that sentence-transformers saved answer as it does itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import converters
import infer
from infer.errors import ConversionError, InputError
from tests.text_models import LONG, SENTENCES, bert_folder

TEXTS = [*SENTENCES, LONG, "Straße ÉCOLE İstanbul ΑΣ"]
SIZE = 32
Stages = Callable[[Any], list[Any]]


def _pooled(mode: Any) -> Stages:
    return lambda st: [st.Pooling(SIZE, pooling_mode=mode)]


def _projected(**options: Any) -> Stages:
    def stages(st: Any) -> list[Any]:
        torch.manual_seed(1)
        norm = st.LayerNorm(24)
        torch.nn.init.normal_(norm.norm.weight)
        dense = st.Dense(SIZE, 24, activation_function=torch.nn.GELU(), **options)
        return [st.Pooling(SIZE, pooling_mode="mean"), st.Dropout(0.5), dense, norm, st.Normalize()]

    return stages


STAGES: dict[str, Stages] = {
    **{
        mode: _pooled(mode)
        for mode in ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    },
    "two": _pooled(["cls", "max"]),
    "projected": _projected(),
    "residual": _projected(use_residual=True),
    "same-size residual": lambda st: [
        st.Pooling(SIZE, pooling_mode="mean"),
        st.Dense(SIZE, SIZE, activation_function=torch.nn.Tanh(), use_residual=True),
    ],
}


def saved(folder: Path, stages: Stages, tokenizer: dict[str, Any] | None = None, **options: Any) -> Path:
    """A folder as sentence-transformers writes it today."""
    import sentence_transformers
    from sentence_transformers.sentence_transformer import modules

    # stages see what the last layer says, however many there are
    bert_folder(folder / "bert", "MaskedLM", tokenizer=tokenizer, num_hidden_layers=1)
    encoder = modules.Transformer(str(folder / "bert"))
    model = sentence_transformers.SentenceTransformer(
        modules=[encoder, *stages(modules)], device="cpu", **options
    )
    model.save(str(folder / "model"))
    return folder / "model"


def original(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    import sentence_transformers

    loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    return np.asarray(loaded.encode(texts, **options))


def compare(folder: Path, theirs: np.ndarray, inputs: list[Any] = TEXTS) -> None:
    artifact = folder.with_suffix(".infer")
    converters.convert(folder, artifact)
    with infer.load(artifact) as session:
        ours = session(inputs)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= 0.99999


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**data, **changes}))


AFTER_POOLING = ("projected", "residual", "same-size residual")
"""Stages that see pooled vectors, in which there is no padding."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pad"),
    [
        (name, pad)
        for name in STAGES
        for pad in ("right", "left")
        if pad == "right" or name not in AFTER_POOLING
    ],
)
def test_stages_equal_the_original(name: str, pad: str, tmp_path: Path) -> None:
    """Every stage, and every pooling mode with padding on either side: short, empty and cut texts."""
    folder = saved(tmp_path, STAGES[name], {"padding_side": pad})
    compare(folder, original(folder, TEXTS))


def test_lower_case_comes_before_the_tokenizer(tmp_path: Path) -> None:
    """A cased tokenizer sees lower case if the folder says so: also where Python's own lower() differs."""
    folder = saved(tmp_path, STAGES["mean"], {"do_lower_case": False})
    cased = original(folder, TEXTS)
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    lowered = original(folder, TEXTS)
    assert np.abs(lowered - cased).max() > 0.01
    compare(folder, lowered)


def test_prompts_are_put_before_texts(tmp_path: Path) -> None:
    """The default prompt goes before a plain text, a named one or none where the input says so."""
    prompts = {"query": "Represent this question: ", "passage": "passage: "}
    folder = saved(tmp_path, STAGES["mean"], prompts=prompts, default_prompt_name="query")
    plain = original(folder, TEXTS, prompt="")
    theirs = original(folder, TEXTS)
    assert np.abs(plain - theirs).max() > 0.01
    compare(folder, theirs)
    with infer.load(folder.with_suffix(".infer")) as session:
        named = session([{"text": text, "prompt": "passage"} for text in TEXTS])
        np.testing.assert_allclose(named, original(folder, TEXTS, prompt_name="passage"), atol=1e-5)
        bare = session([{"text": text, "prompt": None} for text in TEXTS])
        np.testing.assert_allclose(bare, plain, atol=1e-5)
        with pytest.raises(InputError, match=r"text 1 asks for the prompt 'none'; the model has .*query"):
            session(["a", {"text": "b", "prompt": "none"}])
        with pytest.raises(InputError, match="text 0 is a mapping with 'text'; it must have 'text' and"):
            session({"text": "b"})
        with pytest.raises(InputError, match="text 0 must be a str, but is a int"):
            session({"text": 3, "prompt": "query"})


def test_folders_of_before_version_5(tmp_path: Path) -> None:
    """Pooling as flags, and the length in sentence_bert_config.json."""
    folder = saved(tmp_path, STAGES["two"])
    flags = {
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
    }
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": SIZE, **flags}))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
    compare(folder, original(folder, TEXTS))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "middle"}, "pooling middle .* infer has cls, max"),
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}, "for text-generation"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "activation 'os.system'"),
        (
            "2_Dense/config.json",
            {"module_input_name": "token_embeddings"},
            "'token_embeddings' as module_input",
        ),
        ("2_Dense/config.json", {"in_features": 5}, "do not fit its config.json"),
    ],
)
def test_what_is_not_known_is_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    """A stage or mode that we do not have is named, never left out."""
    folder = saved(tmp_path, STAGES["same-size residual"])
    edit(folder / file, **changes)
    with pytest.raises(ConversionError, match=message):
        converters.convert(folder, tmp_path / "out.infer")


def test_a_pooling_without_the_prompt_gives_no_task(tmp_path: Path) -> None:
    """Vectors that leave out the prompt's tokens are not ours, and a note says so."""
    folder = saved(tmp_path, STAGES["mean"], prompts={"query": "Q: "})
    edit(folder / "1_Pooling/config.json", include_prompt=False)
    artifact = converters.convert(folder, tmp_path / "out.infer")
    assert artifact.manifest.task is None
    assert any("leaves out the prompt" in note for note in artifact.manifest.provenance.notes)
