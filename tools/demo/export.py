"""The trained model as a checkpoint folder, in bfloat16, with the MTP head under `mtp.`."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Qwen3_5ForConditionalGeneration

from demo.model import CONTEXT
from demo.mtp import MtpHead
from demo.pictures import FRAMES, FRAMES_PER_SECOND, SIDE
from demo.prompt import FRAMES_PER_PATCH, MERGE, PATCH

TEMPLATE = Path(__file__).parent / "checkpoint" / "chat_template.jinja"
"""Qwen3.5's chat template, as it is published."""

PROCESSOR: dict[str, Any] = {
    "patch_size": PATCH,
    "temporal_patch_size": FRAMES_PER_PATCH,
    "merge_size": MERGE,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
}


def tensors(model: Qwen3_5ForConditionalGeneration, mtp: MtpHead) -> dict[str, torch.Tensor]:
    """All weights by their published names; the vocabulary head is the embedding and not stored again."""
    own = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    ahead = {f"mtp.{name}": value for name, value in mtp.state_dict().items()}
    return {name: value.to(torch.bfloat16).contiguous() for name, value in (own | ahead).items()}


def side_files(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """The small JSON files beside the weights."""
    end, pad = (tokenizer.token_to_id(token) for token in ["<|im_end|>", "<|endoftext|>"])
    image_size = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    video_size = {"shortest_edge": 4096, "longest_edge": FRAMES * SIDE * SIDE}
    return {
        "generation_config.json": {
            "bos_token_id": None,
            "do_sample": False,
            "eos_token_id": [end, pad],
            "pad_token_id": pad,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": CONTEXT,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": image_size,
            **PROCESSOR,
        },
        "video_preprocessor_config.json": {
            "video_processor_type": "Qwen3VLVideoProcessor",
            "size": video_size,
            "fps": FRAMES_PER_SECOND,
            **PROCESSOR,
        },
    }


def export(model: Qwen3_5ForConditionalGeneration, mtp: MtpHead, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the whole folder; an earlier one of that name is replaced file by file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(model, mtp), folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_diff_dict() | {"dtype": "bfloat16"}
    for name, content in ({"config.json": config} | side_files(tokenizer)).items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")


def load_exported(folder: Path) -> tuple[Qwen3_5ForConditionalGeneration, MtpHead, Tokenizer]:
    """The folder's model and MTP head, its bfloat16 weights in float32."""
    model = Qwen3_5ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    mtp = MtpHead(model)
    stored = load_file(folder / "model.safetensors").items()
    mtp.load_state_dict(
        {name.removeprefix("mtp."): value for name, value in stored if name.startswith("mtp.")}
    )
    return model.eval(), mtp.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
