"""Small random models of many families: what the conversion tests and the matrix in bench/ go over.

A literal table. Each configuration is a small but honest version of its family: two layers or
more, several heads, grouped-query attention, relative position buckets, shifted windows and
sliding windows that are smaller than the tested lengths, so that what is hard in the full model
is hard here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = ("batch", "sequence")
IMAGE = ("batch", "height", "width")
FIXED_IMAGE = ("batch",)
TRANSLATION = ("batch", "sequence", "decoder_sequence")


@dataclass(frozen=True)
class Architecture:
    """A model class of `transformers`, by name, and the fields of its config.

    `dims` are those the artifact must be able to vary. `fixed` are dims the original can vary, too,
    but no exporter can: a known limit, which the artifact must say.
    """

    name: str
    model_class: str
    dims: tuple[str, ...]
    config: Mapping[str, Any]
    fixed: tuple[str, ...] = ()

    def save(self, folder: Path) -> Path:
        """Build the model, seeded, and save it as its users have it: config.json and weights."""
        import torch
        import transformers

        torch.manual_seed(0)
        model_class = getattr(transformers, self.model_class)
        model = model_class(model_class.config_class(**self.config))
        _stir(model)
        model.save_pretrained(folder)
        return folder


def _stir(model: Any) -> None:
    """Make every weight matter. Fresh models have biases of zero, norms of one, layer scales of
    1e-6 and attention that is all but uniform, behind which wrong graphs can hide."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and name.endswith("weight"):
                # the scale of a norm; some start at 0, which leaves nothing but ties behind them
                parameter.fill_(1.0)
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1 * torch.randn(buffer.shape, generator=generator)
            elif name.endswith("running_var"):
                buffer += 0.5 * torch.rand(buffer.shape, generator=generator)


_ENCODER = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_DISENTANGLED = {
    **_ENCODER,
    "relative_attention": True,
    "position_buckets": 4,
    "max_relative_positions": 12,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
_IMAGE_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [2, 1, 2, 1]}
_WINDOWS = {"image_size": 32, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}
_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    **_STAGES,
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
_DETECTOR = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 7,
    "num_labels": 5,
    "image_size": 96,
}
_SPEECH = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16, 16, 16],
    "conv_stride": [10, 8, 4],
    "conv_kernel": [20, 8, 4],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 24,
}
_TEXT_TOWER = {**_TOWER, "vocab_size": 99, "max_position_embeddings": 64, "eos_token_id": 98}
_IMAGE_TOWER = {**_TOWER, "image_size": 32, "patch_size": 8}
_DECODER = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": False}
_TRANSLATOR = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_BUCKETS = {
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}

ARCHITECTURES: tuple[Architecture, ...] = (
    # text encoders
    Architecture("bert", "BertForSequenceClassification", TEXT, {**_ENCODER, "num_labels": 3}),
    Architecture("roberta", "RobertaForMaskedLM", TEXT, {**_ENCODER, "type_vocab_size": 1}),
    Architecture("distilbert", "DistilBertModel", TEXT, {
        "vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
        "max_position_embeddings": 64,
    }),
    Architecture("albert", "AlbertModel", TEXT, {**_ENCODER, "embedding_size": 16}),
    Architecture("electra", "ElectraForTokenClassification", TEXT, {**_ENCODER, "embedding_size": 16}),
    Architecture("mpnet", "MPNetModel", TEXT, {**_ENCODER}),
    Architecture("deberta", "DebertaModel", TEXT, {
        **_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8,
        "position_biased_input": False,
    }),
    Architecture("deberta-v2", "DebertaV2ForSequenceClassification", TEXT, {**_DISENTANGLED}),
    Architecture("modernbert", "ModernBertModel", TEXT, {
        **_ENCODER, "num_hidden_layers": 4, "local_attention": 6, "pad_token_id": 0, "bos_token_id": 1,
        "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
    }),
    Architecture("xlm-roberta", "XLMRobertaModel", TEXT, {**_ENCODER, "type_vocab_size": 1}),
    Architecture("camembert", "CamembertForTokenClassification", TEXT, {**_ENCODER, "type_vocab_size": 1}),
    Architecture("layoutlm", "LayoutLMModel", TEXT, {**_ENCODER, "max_2d_position_embeddings": 64}),
    Architecture("fnet", "FNetModel", TEXT, {
        "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
        "max_position_embeddings": 64,
    }),
    Architecture("convbert", "ConvBertModel", TEXT, {
        **_ENCODER, "embedding_size": 16, "conv_kernel_size": 5, "head_ratio": 2, "num_groups": 2,
    }),
    Architecture("squeezebert", "SqueezeBertModel", TEXT, {**_ENCODER, "embedding_size": 32}),
    Architecture("mobilebert", "MobileBertModel", TEXT, {
        **_ENCODER, "embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16,
    }),
    Architecture("roformer", "RoFormerModel", TEXT, {**_ENCODER, "embedding_size": 16}),
    Architecture("funnel", "FunnelModel", ("batch",), {
        "vocab_size": 99, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1],
        "num_decoder_layers": 1,
    }, fixed=("sequence",)),  # its relative positions are Python lists as long as the text
    Architecture("xlnet", "XLNetModel", TEXT, {
        "vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48,
    }),
    # images
    Architecture("vit", "ViTForImageClassification", FIXED_IMAGE, {**_IMAGE_ENCODER, "num_labels": 3}),
    Architecture("deit", "DeiTForImageClassificationWithTeacher", FIXED_IMAGE, {**_IMAGE_ENCODER}),
    Architecture("beit", "BeitForImageClassification", IMAGE, {
        **_IMAGE_ENCODER, "use_relative_position_bias": True,
    }),
    Architecture("swin", "SwinForImageClassification", IMAGE, _WINDOWS),
    Architecture("swinv2", "Swinv2ForImageClassification", IMAGE, {**_WINDOWS}),
    Architecture("convnext", "ConvNextForImageClassification", IMAGE, {**_STAGES}),
    Architecture("convnextv2", "ConvNextV2ForImageClassification", IMAGE, {**_STAGES}),
    Architecture("resnet", "ResNetForImageClassification", IMAGE, {
        "embedding_size": 8, **_STAGES, "layer_type": "bottleneck",
    }),
    Architecture("regnet", "RegNetForImageClassification", IMAGE, {
        "embedding_size": 8, **_STAGES, "groups_width": 8, "layer_type": "y",
    }),
    Architecture("mobilenet-v1", "MobileNetV1ForImageClassification", IMAGE, {
        "image_size": 64, "depth_multiplier": 0.25,
    }),
    Architecture("mobilenet-v2", "MobileNetV2ForImageClassification", IMAGE, {
        "image_size": 64, "depth_multiplier": 0.25,
    }),
    Architecture("mobilevit", "MobileViTForImageClassification", IMAGE, {
        "image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 16, 24, 32],
    }),
    Architecture("mobilevitv2", "MobileViTV2ForImageClassification", IMAGE, {
        "image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1],
    }),
    Architecture("segformer", "SegformerForSemanticSegmentation", IMAGE, {
        "hidden_sizes": [8, 16, 16, 32], "depths": [2, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4],
        "sr_ratios": [4, 2, 2, 1], "decoder_hidden_size": 16, "num_labels": 4, "image_size": 64,
    }),
    Architecture("dinov2", "Dinov2Model", IMAGE, {**_IMAGE_ENCODER, "patch_size": 7, "image_size": 28}),
    Architecture("pvt", "PvtForImageClassification", FIXED_IMAGE, {
        "image_size": 64, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 2, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
    }),
    Architecture("pvt-v2", "PvtV2ForImageClassification", IMAGE, {
        "image_size": 64, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 2, 1, 1],
        "num_attention_heads": [1, 2, 2, 4], "linear_attention": True,
    }),
    Architecture("levit", "LevitForImageClassification", FIXED_IMAGE, {
        "image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4],
        "depths": [2, 2, 2], "key_dim": [8, 8, 8],
    }),
    Architecture("efficientnet", "EfficientNetForImageClassification", IMAGE, {
        "image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 1.0, "hidden_dim": 320,
    }),
    Architecture("poolformer", "PoolFormerForImageClassification", IMAGE, {**_STAGES}),
    Architecture("cvt", "CvtForImageClassification", IMAGE, {
        "embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3], "image_size": 64,
    }),
    Architecture("dpt", "DPTForDepthEstimation", FIXED_IMAGE, {
        **_IMAGE_ENCODER, "num_hidden_layers": 4, "is_hybrid": False, "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16,
    }),
    # detection
    Architecture("detr", "DetrForObjectDetection", IMAGE, {
        **_DETECTOR, "backbone_config": {**_RESNET, "out_features": ["stage4"]},
    }),
    Architecture("conditional-detr", "ConditionalDetrForObjectDetection", IMAGE, {
        **_DETECTOR, "backbone_config": {**_RESNET, "out_features": ["stage4"]},
    }),
    Architecture("deformable-detr", "DeformableDetrForObjectDetection", IMAGE, {
        **_DETECTOR, "num_feature_levels": 3, "encoder_n_points": 2, "decoder_n_points": 2,
        "encoder_layers": 1, "backbone_config": _RESNET,
    }),
    Architecture("rt-detr", "RTDetrForObjectDetection", IMAGE, {
        "backbone_config": {
            "model_type": "rt_detr_resnet", "embedding_size": 8, **_STAGES, "layer_type": "basic",
            "out_features": ["stage2", "stage3", "stage4"],
        },
        "image_size": 96, "encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32],
        "encoder_ffn_dim": 48, "encoder_attention_heads": 4, "d_model": 32, "num_queries": 7,
        "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 48, "decoder_layers": 2, "decoder_attention_heads": 4, "num_labels": 5,
    }),
    Architecture("yolos", "YolosForObjectDetection", IMAGE, {
        **_IMAGE_ENCODER, "image_size": [48, 64], "num_detection_tokens": 7, "num_labels": 5,
    }),
    # sound
    Architecture("wav2vec2", "Wav2Vec2ForCTC", ("batch", "samples"), {**_SPEECH}),
    Architecture("hubert", "HubertForCTC", ("batch", "samples"), {**_SPEECH}),
    Architecture("wavlm", "WavLMForCTC", ("batch", "samples"), {
        **_SPEECH, "num_buckets": 16, "max_bucket_distance": 24,
    }),
    Architecture("audio-spectrogram", "ASTForAudioClassification", ("batch",), {
        **_TOWER, "patch_size": 8, "frequency_stride": 4, "time_stride": 6, "max_length": 40,
        "num_mel_bins": 24,
    }),
    Architecture("whisper", "WhisperForConditionalGeneration", ("batch", "decoder_sequence"), {
        **_TRANSLATOR, "num_mel_bins": 16, "max_source_positions": 30, "max_target_positions": 64,
    }),
    # images with text
    Architecture("clip", "CLIPModel", TEXT, {
        "text_config": _TEXT_TOWER, "vision_config": _IMAGE_TOWER, "projection_dim": 24,
    }),
    Architecture("clip-text", "CLIPTextModelWithProjection", TEXT, _TEXT_TOWER),
    Architecture("clip-vision", "CLIPVisionModelWithProjection", FIXED_IMAGE, _IMAGE_TOWER),
    Architecture("siglip", "SiglipModel", TEXT, {
        "text_config": _TEXT_TOWER, "vision_config": _IMAGE_TOWER,
    }),
    Architecture("siglip-text", "SiglipTextModel", TEXT, _TEXT_TOWER),
    Architecture("siglip-vision", "SiglipVisionModel", FIXED_IMAGE, _IMAGE_TOWER),
    # decoders, for their logits
    Architecture("gpt2", "GPT2LMHeadModel", TEXT, {
        "vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    }),
    Architecture("gpt-neo", "GPTNeoForCausalLM", TEXT, {
        "vocab_size": 99, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 5,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64,
    }),
    Architecture("gpt-neox", "GPTNeoXForCausalLM", TEXT, {**_DECODER}),
    Architecture("llama", "LlamaForCausalLM", TEXT, {**_GROUPED}),
    Architecture("mistral", "MistralForCausalLM", TEXT, {**_GROUPED, "head_dim": 8, "sliding_window": 5}),
    Architecture("qwen2", "Qwen2ForCausalLM", TEXT, {
        **_GROUPED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
    }),
    Architecture("qwen3", "Qwen3ForCausalLM", TEXT, {**_GROUPED, "head_dim": 12}),
    Architecture("gemma", "GemmaForCausalLM", TEXT, {**_GROUPED, "num_key_value_heads": 1, "head_dim": 8}),
    Architecture("gemma2", "Gemma2ForCausalLM", TEXT, {**_GROUPED, "head_dim": 12, "sliding_window": 5}),
    Architecture("gemma3", "Gemma3ForCausalLM", TEXT, {
        **_GROUPED, "head_dim": 8, "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    }),
    Architecture("phi", "PhiForCausalLM", TEXT, {**_DECODER, "partial_rotary_factor": 0.5}),
    Architecture("phi3", "Phi3ForCausalLM", TEXT, {**_GROUPED, "sliding_window": 5}),
    Architecture("opt", "OPTForCausalLM", TEXT, {
        **_DECODER, "ffn_dim": 48, "word_embed_proj_dim": 16,
    }),
    Architecture("bloom", "BloomForCausalLM", TEXT, {
        "vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4,
    }),
    Architecture("mixtral", "MixtralForCausalLM", TEXT, {**_GROUPED, **_EXPERTS, "num_local_experts": 4}),
    Architecture("qwen2-moe", "Qwen2MoeForCausalLM", TEXT, {
        **_GROUPED, **_EXPERTS, "num_experts": 4, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    }),
    # encoder with decoder
    Architecture("t5", "T5ForConditionalGeneration", TRANSLATION, _BUCKETS),
    Architecture("t5-encoder", "T5EncoderModel", TEXT, {**_BUCKETS, "feed_forward_proj": "gated-gelu"}),
    Architecture("bart", "BartForConditionalGeneration", TRANSLATION, {**_TRANSLATOR}),
    Architecture("marian", "MarianMTModel", TRANSLATION, {**_TRANSLATOR, "activation_function": "swish"}),
    Architecture("mbart", "MBartForConditionalGeneration", TRANSLATION, {**_TRANSLATOR}),
    Architecture("pegasus", "PegasusForConditionalGeneration", TRANSLATION, {**_TRANSLATOR}),
)  # fmt: skip
"""One of each."""

REPRESENTATIVE = ("bert", "gpt2", "resnet", "vit")
"""Those that every run of the tests converts."""
