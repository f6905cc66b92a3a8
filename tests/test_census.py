"""What a model does in one call, counted in models whose parts are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from converters.census import census

LAYERS = 3
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
IDS = torch.arange(6)[None]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_an_encoder_however_it_attends(implementation: str) -> None:
    """One attention a layer, as one call or written out; two norms a layer and one for the embeddings; six
    products a layer and the pooler's; three embeddings."""
    config = transformers.BertConfig(**SMALL, attn_implementation=implementation)
    found = census(transformers.BertModel(config).eval(), [IDS])
    assert found == {
        "attention": LAYERS,
        "norm": 2 * LAYERS + 1,
        "activation": LAYERS,
        "linear": 6 * LAYERS + 1,
        "embedding": 3,
    }


def test_norms_written_by_hand_count() -> None:
    """Llama's are plain arithmetic: two a layer and the last one; each layer has seven products."""
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=1)
    found = census(transformers.LlamaModel(config).eval(), [IDS])
    assert found["attention"] == LAYERS
    assert found["norm"] == 2 * LAYERS + 1
    assert found["linear"] == 7 * LAYERS


def test_activations_and_norms_written_by_hand_count() -> None:
    """GPT-2's GELU is plain arithmetic, and so are DeBERTa's norms; ReLU6 is a hard tanh to torch."""
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=LAYERS, n_head=2)
    assert census(transformers.GPT2Model(config).eval(), [IDS])["activation"] == LAYERS
    deberta = transformers.DebertaModel(transformers.DebertaConfig(**SMALL)).eval()
    assert census(deberta, [IDS])["norm"] == 2 * LAYERS + 1
    assert census(nn.Sequential(nn.ReLU6(), nn.Hardtanh()), [torch.ones(3)]) == {"activation": 2}


def test_convolutions_and_recurrence() -> None:
    """Each kind under its own name; what one function calls is part of it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
            self.lstm = nn.LSTM(4, 5)
            self.attend = nn.MultiheadAttention(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = self.body(x).flatten(2).permute(2, 0, 1)
            rows = self.attend(rows, rows, rows, need_weights=False)[0]
            out: torch.Tensor = self.lstm(rows)[0]
            return out.softmax(-1)  # no attention: nothing is multiplied with it

    found = census(Net().train(False).requires_grad_(False), [torch.randn(1, 3, 8, 8)])
    assert {
        kind: found.get(kind)
        for kind in ("attention", "norm", "batch norm", "activation", "convolution", "recurrent")
    } == {
        "attention": 1,
        "norm": None,
        "batch norm": 1,
        "activation": 1,
        "convolution": 2,
        "recurrent": 1,
    }


def test_of_torchscript_nothing_is_known() -> None:
    """Its functions are not seen, and nothing is made up."""
    scripted = torch.jit.trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(1, 3))
    assert census(scripted, [torch.randn(1, 3)]) == {}
