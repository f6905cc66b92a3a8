"""Transformers at their published size, with random weights: plain forward passes, to be optimized.

The zoo has the convolutional networks of full size. None of these has a metric; what is fused, and how fast
it is, does not depend on the weights' values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import nn

from infer.signature import Array

Built = tuple[nn.Module, dict[str, torch.Tensor]]


def _seeded(build: Callable[[], Built]) -> Callable[[], Built]:
    """The same weights and inputs in every process."""

    @wraps(build)
    def built() -> Built:
        torch.manual_seed(0)
        model, example = build()
        return model.eval(), example

    return built


@_seeded
def bert_base() -> Built:
    """BERT-base, 110 M parameters; 128 tokens, of which the second text has half."""
    from transformers import BertConfig, BertModel

    config = BertConfig()
    model: Any = BertModel(config)
    mask = torch.ones(2, 128, dtype=torch.int64)
    mask[1, 64:] = 0
    return model, {"input_ids": torch.randint(0, config.vocab_size, (2, 128)), "attention_mask": mask}


@_seeded
def vit_base() -> Built:
    """ViT-B/16, 86 M parameters, 224 × 224."""
    from transformers import ViTConfig, ViTModel

    model: Any = ViTModel(ViTConfig())
    return model, {"pixel_values": torch.randn(2, 3, 224, 224)}


@_seeded
def detr_resnet50() -> Built:
    """DETR on ResNet-50, 41 M parameters, 480 × 640."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone: Any = ResNetConfig(out_features=["stage4"])
    config: Any = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone
    )
    model: Any = DetrForObjectDetection(config)
    images = torch.randn(2, 3, 480, 640)
    _settle(model, images)
    return model, {"pixel_values": images}


def _settle(model: nn.Module, images: torch.Tensor) -> None:
    """Give the backbone's frozen norms statistics and scales like those of a trained one.

    With means of 0 and variances of 1 values grow from block to block until attention saturates; with full
    scales, rounding errors do: to 1e-4 of the largest value, where no exporter can be proved equal. So each
    block's last norm begins small, as in training (Goyal et al. 2017, section 5.1).
    """
    from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d
    from transformers.models.resnet.modeling_resnet import ResNetBottleNeckLayer

    def settle(norm: Any, args: tuple[torch.Tensor]) -> None:
        norm.running_mean.copy_(args[0].mean((0, 2, 3)))
        norm.running_var.copy_(args[0].var((0, 2, 3)))

    hooks = []
    for part in model.modules():
        if isinstance(part, ResNetBottleNeckLayer):
            last: Any = part.layer[-1]
            last.normalization.weight.fill_(0.2)
        if isinstance(part, DetrFrozenBatchNorm2d):
            hooks.append(part.register_forward_pre_hook(settle))
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()


@_seeded
def gpt2() -> Built:
    """GPT-2, 124 M parameters, as a plain forward pass over 64 tokens, without past."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(use_cache=False)
    model: Any = GPT2LMHeadModel(config)
    ids = torch.randint(0, config.vocab_size, (2, 64))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@_seeded
def whisper_base_encoder() -> Built:
    """Whisper base's encoder, 20 M parameters, 30 s of sound."""
    from transformers import WhisperConfig, WhisperModel

    config: Any = WhisperConfig(
        d_model=512,
        encoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_layers=1,
    )
    model: Any = WhisperModel(config)
    return model.encoder, {"input_features": torch.randn(2, 80, 3000)}


@dataclass(frozen=True)
class FullSize:
    """A family as those of the zoo (see `bench.zoo`), without a task.

    Attributes:
        build: the model and its example inputs, two rows; a function of this file, by its name.
    """

    build: Callable[[], Built]
    WEIGHTS = "random"

    @property
    def source(self) -> str:
        """As `infer convert` takes it."""
        return f"{__name__}:{self.build.__name__}"

    def samples(self) -> list[dict[str, Array]]:
        """The rows of the example inputs."""
        _, example = self.build()
        return [{name: tensor[row : row + 1].numpy() for name, tensor in example.items()} for row in (0, 1)]


BUILDS: dict[str, FullSize] = {
    "bert-base": FullSize(bert_base),
    "vit-base": FullSize(vit_base),
    "detr-resnet50": FullSize(detr_resnet50),
    "gpt2": FullSize(gpt2),
    "whisper-base-encoder": FullSize(whisper_base_encoder),
}
"""Name, as in `bench.zoo.FULL_SIZE` → family."""
