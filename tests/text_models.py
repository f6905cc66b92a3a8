"""Small transformers folders for texts: random weights, stirred, with tokenizers of two families."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from bench.zoo import minilm

SENTENCES = [
    "Angela Merkel met Zoë Saldaña in São Paulo on Friday.",
    "microsoft opened an uncharacteristically large office near Reykjavík!",
    "emoji 🙂🎉 in-between, e.g. the O'Neill-Smith case (2021), cost €5,000.00…",
    "日本語のテキスト and a\ttab,   spaces",
    "ok",
    "",
]
LONG = " ".join(SENTENCES * 8)
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "MISC"}


def bert_folder(folder: Path, kind: str, *, tokenizer: dict[str, Any] | None = None, **config: Any) -> Path:
    """`BertForKIND` with MiniLM's WordPiece tokenizer, whose config is changed by `tokenizer`."""
    import transformers

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    shape["max_position_embeddings"] = 64
    torch.manual_seed(0)
    built = transformers.BertConfig(vocab_size=30522, **{**shape, **config})
    _save(getattr(transformers, f"BertFor{kind}")(built), folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm.folder() / name, folder)
    return _configure(folder, {"model_max_length": 64, **(tokenizer or {})})


def roberta_folder(
    folder: Path, kind: str, *, tokenizer: dict[str, Any] | None = None, **config: Any
) -> Path:
    """`RobertaForKIND` with a byte-level BPE tokenizer trained on `SENTENCES`."""
    import tokenizers
    import transformers

    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(SENTENCES, vocab_size=400, min_frequency=1, special_tokens=special)
    folder.mkdir(parents=True)
    trained.save_model(str(folder))
    saved = transformers.RobertaTokenizerFast(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")
    )
    saved.save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    built = transformers.RobertaConfig(
        vocab_size=len(saved), max_position_embeddings=66, type_vocab_size=1, **shape, **config
    )
    _save(getattr(transformers, f"RobertaFor{kind}")(built), folder)
    return _configure(folder, tokenizer or {})


def _save(model: Any, folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # fresh weights make all tokens nearly alike, and wrong answers look right
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.eval().save_pretrained(folder)


def _configure(folder: Path, changes: dict[str, Any]) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder
