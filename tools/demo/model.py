"""The tiny Qwen3.5 model, from transformers' own classes."""

from typing import Any

import torch
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from demo.prompt import FRAMES_PER_PATCH, MERGE, PATCH
from demo.tokenizer import VOCABULARY

HIDDEN = 192
CONTEXT = 32768

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "attn_output_gate": True,
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100000,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [3, 3, 2],
    },
}
VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 144,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": FRAMES_PER_PATCH,
    "deepstack_visual_indexes": [],
}


def make_config(token_id: dict[str, int]) -> Qwen3_5Config:
    """The configuration; `token_id` gives the ids of the added tokens."""
    ends = {"eos_token_id": token_id["<|im_end|>"], "pad_token_id": token_id["<|endoftext|>"]}
    config = Qwen3_5Config(
        text_config=TEXT | ends,
        vision_config=VISION,
        image_token_id=token_id["<|image_pad|>"],
        video_token_id=token_id["<|video_pad|>"],
        vision_start_token_id=token_id["<|vision_start|>"],
        vision_end_token_id=token_id["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    config.architectures = ["Qwen3_5ForConditionalGeneration"]
    return config


def make_model(config: Qwen3_5Config, seed: int) -> Qwen3_5ForConditionalGeneration:
    """A model with random float32 weights."""
    torch.manual_seed(seed)
    return Qwen3_5ForConditionalGeneration._from_config(
        config, attn_implementation="sdpa", dtype=torch.float32
    )
