"""Writes two GGUF files beside that of `random_gguf.py`, with which llama.cpp sees: a vision tower and words.

    python benches/random_mmproj.py 0.8B tower.gguf words.gguf

The tower has random weights in the true shapes of a size of the family. Its matrices are f16, as in the files
that are published; `--blocks Q8_0` gives them the 8 bits that they have in edgewise's recipe `int4`. Keys and
names are those that llama.cpp's `tools/mtmd/clip.cpp` loads for the projector `qwen3vl_merger`.

llama.cpp puts an image into a prompt by tokenising the text around it, which the random text model has no
vocabulary for. The second file is one: without weights, of llama.cpp's kind `test`, where each five letters
are a token. So neither engine loads the words of a real model.

Needs the package `gguf`, and of edgewise the shapes alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf

from random_gguf import FORMATS, Tensor, norm, read_config, write_tensors

PROJECTOR = "qwen3vl_merger"
NORM_EPS = 1e-6
MEAN = SPREAD = [0.5, 0.5, 0.5]
"""Of pixel values from 0 to 1."""
WORDS = 256
"""Tokens of the vocabulary."""


def affine(name: str, rows: int, cols: int) -> Iterator[Tensor]:
    """A matrix and its bias."""
    yield Tensor(f"{name}.weight", (rows, cols), FORMATS.F16)
    yield Tensor(f"{name}.bias", (rows,))


def layer_norm(name: str, width: int) -> Iterator[Tensor]:
    yield norm(name, width)
    yield Tensor(f"{name}.bias", (width,))


def tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """All tensors of the tower of a `vision_config`."""
    width, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    merged = width * config["spatial_merge_size"] ** 2
    # One for each of the two frames; always f16.
    for frame in ("", ".1"):
        yield Tensor(f"v.patch_embd.weight{frame}", (width, config["in_channels"], patch, patch), FORMATS.F16)
    yield Tensor("v.patch_embd.bias", (width,))
    yield Tensor("v.position_embd.weight", (config["num_position_embeddings"], width))
    for i in range(config["depth"]):
        block = f"v.blk.{i}."
        yield from layer_norm(f"{block}ln1", width)
        yield from layer_norm(f"{block}ln2", width)
        yield from affine(f"{block}attn_qkv", 3 * width, width)
        yield from affine(f"{block}attn_out", width, width)
        yield from affine(f"{block}ffn_up", inner, width)
        yield from affine(f"{block}ffn_down", width, inner)
    yield from layer_norm("v.post_ln", width)
    yield from affine("mm.0", merged, merged)
    yield from affine("mm.2", config["out_hidden_size"], merged)


def write_tower(
    config: dict[str, Any],
    destination: Path,
    blocks: gguf.GGMLQuantizationType = FORMATS.F16,
    seed: int = 0,
) -> None:
    """Write the tower of a `config.json`; `blocks` stand in place of f16, but not where patches come in.

    Raises:
        ValueError: if the tower has DeepStack mergers, which the sizes of the family do not have.
    """
    vision = config["vision_config"]
    if vision.get("deepstack_visual_indexes"):
        raise ValueError("vision_config: DeepStack mergers are not written")
    writer = gguf.GGUFWriter(destination, "clip")
    writer.add_name("random")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(PROJECTOR)
    side = round(vision["num_position_embeddings"] ** 0.5)
    writer.add_vision_image_size(side * vision["patch_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_spatial_merge_size(vision["spatial_merge_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["depth"])
    writer.add_vision_head_count(vision["num_heads"])
    writer.add_vision_projection_dim(vision["out_hidden_size"])
    writer.add_vision_attention_layernorm_eps(NORM_EPS)
    writer.add_vision_image_mean(MEAN)
    writer.add_vision_image_std(SPREAD)
    writer.add_vision_use_gelu(True)
    writer.add_vision_is_deepstack_layers([False] * vision["depth"])
    matrix = (FORMATS.F16, 2)
    planned = [
        replace(tensor, format=blocks) if (tensor.format, len(tensor.shape)) == matrix else tensor
        for tensor in tensors(vision)
    ]
    write_tensors(writer, planned, seed)


def write_words(destination: Path) -> None:
    """Write a vocabulary without a model."""
    writer = gguf.GGUFWriter(destination, "qwen35")
    writer.add_name("words")
    writer.add_tokenizer_model("test")
    writer.add_token_list([f"word {i}" for i in range(WORDS)])
    write_tensors(writer, [], 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", help="0.8B, 2B, ..., or the path of a config.json")
    parser.add_argument("tower", type=Path)
    parser.add_argument("words", type=Path)
    parser.add_argument("--blocks", default="F16", choices=["F16", "Q8_0"], help="of the matrices (F16)")
    arguments = parser.parse_args()
    write_tower(read_config(arguments.size), arguments.tower, FORMATS[arguments.blocks])
    write_words(arguments.words)


if __name__ == "__main__":
    main()
