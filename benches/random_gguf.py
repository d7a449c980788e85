"""Writes a GGUF file of random weights in the true shapes of a size of the family, to measure llama.cpp with.

    python benches/random_gguf.py 0.8B random.gguf

What edgewise's recipe `int4` holds in INT4 is Q4_0 here: both are 4 bits with a scale for 32 columns, of 16
bits here and of 8 there.
That goes for the embedding too, which is the head where it is tied. What is INT8 there is Q8_0, and the rest
f32. `--blocks Q4_K` writes the former in blocks of the files that are loaded most. The vision tower, which
llama.cpp wants in a file of its own, is written by `random_mmproj.py`. Keys and names are those that
llama.cpp's `src/models/qwen35.cpp` and `qwen35moe.cpp` load.

Needs the package `gguf`, and of edgewise the shapes alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

SHAPES = Path(__file__).parent.parent / "python" / "edgewise" / "shapes"
FORMATS = gguf.GGMLQuantizationType
FLOATS = {FORMATS.F32: np.float32, FORMATS.F16: np.float16}
DEVIATION = {FORMATS.Q4_0: 4.6, FORMATS.Q4_K: 4.6, FORMATS.Q8_0: 73.3}
"""Of a uniform level, so that weights have variance 1 / cols."""


@dataclass(frozen=True)
class Tensor:
    """A tensor by its name in the file; the shape is row-major."""

    name: str
    shape: tuple[int, ...]
    format: gguf.GGMLQuantizationType = FORMATS.F32
    low: float = -0.1
    high: float = 0.1
    """Limits of f32 numbers. Those of f16 matrices follow from their columns."""


def matrix(name: str, *shape: int) -> Tensor:
    return Tensor(f"{name}.weight", shape, FORMATS.Q4_0)


def norm(name: str, width: int) -> Tensor:
    return Tensor(f"{name}.weight", (width,), low=0.9, high=1.1)


def tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """All tensors of a text model."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield matrix("token_embd", vocabulary, hidden)
    yield norm("output_norm", hidden)
    if not config["tie_word_embeddings"]:
        yield matrix("output", vocabulary, hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"blk.{i}."
        yield norm(f"{layer}attn_norm", hidden)
        yield norm(f"{layer}post_attention_norm", hidden)
        is_attention = (i + 1) % config["full_attention_interval"] == 0
        yield from (attention if is_attention else delta)(layer, config)
        yield from (experts if "num_experts" in config else feed_forward)(layer, config)


def attention(layer: str, config: dict[str, Any]) -> Iterator[Tensor]:
    hidden, width = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    yield matrix(f"{layer}attn_q", 2 * heads * width, hidden)
    yield matrix(f"{layer}attn_k", kv_heads * width, hidden)
    yield matrix(f"{layer}attn_v", kv_heads * width, hidden)
    yield matrix(f"{layer}attn_output", hidden, heads * width)
    yield norm(f"{layer}attn_q_norm", width)
    yield norm(f"{layer}attn_k_norm", width)


def delta(layer: str, config: dict[str, Any]) -> Iterator[Tensor]:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    channels = 2 * keys + values
    yield matrix(f"{layer}attn_qkv", channels, hidden)
    yield matrix(f"{layer}attn_gate", values, hidden)
    yield Tensor(f"{layer}ssm_alpha.weight", (heads, hidden), FORMATS.Q8_0)
    yield Tensor(f"{layer}ssm_beta.weight", (heads, hidden), FORMATS.Q8_0)
    yield Tensor(
        f"{layer}ssm_conv1d.weight", (channels, config["linear_conv_kernel_dim"]), low=-0.5, high=0.5
    )
    yield Tensor(f"{layer}ssm_dt.bias", (heads,))
    yield Tensor(f"{layer}ssm_a", (heads,), low=-1.1, high=-0.9)
    yield norm(f"{layer}ssm_norm", config["linear_value_head_dim"])
    yield matrix(f"{layer}ssm_out", hidden, values)


def feed_forward(layer: str, config: dict[str, Any]) -> Iterator[Tensor]:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    yield matrix(f"{layer}ffn_gate", width, hidden)
    yield matrix(f"{layer}ffn_up", width, hidden)
    yield matrix(f"{layer}ffn_down", hidden, width)


def experts(layer: str, config: dict[str, Any]) -> Iterator[Tensor]:
    hidden, count, width = config["hidden_size"], config["num_experts"], config["moe_intermediate_size"]
    shared = config["shared_expert_intermediate_size"]
    yield Tensor(f"{layer}ffn_gate_inp.weight", (count, hidden))
    yield matrix(f"{layer}ffn_gate_exps", count, width, hidden)
    yield matrix(f"{layer}ffn_up_exps", count, width, hidden)
    yield matrix(f"{layer}ffn_down_exps", count, hidden, width)
    yield Tensor(f"{layer}ffn_gate_inp_shexp.weight", (hidden,))
    yield matrix(f"{layer}ffn_gate_shexp", shared, hidden)
    yield matrix(f"{layer}ffn_up_shexp", shared, hidden)
    yield matrix(f"{layer}ffn_down_shexp", hidden, shared)


def add_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Shapes and constants, as llama.cpp's converter writes them."""
    writer.add_name("random")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(config["head_dim"] * rope["partial_rotary_factor"]))
    writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
    writer.add_full_attention_interval(config["full_attention_interval"])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_num_value_heads"] * config["linear_value_head_dim"])
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    else:
        writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_tokenizer_model("no_vocab")


def head(format: gguf.GGMLQuantizationType, step: float) -> bytes:
    """What stands before the levels of a block, for levels `step` apart whose mean is 0."""
    if format is FORMATS.Q4_K:
        # Steps and minima of all eight parts are 32 of these units; of the six bits two stand apart.
        return np.array([step / 32, 7.5 * step / 32], "<f2").tobytes() + bytes([0xA0] * 8 + [0] * 4)
    return np.array(step, "<f2").tobytes()


def draw(random: np.random.Generator, tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor: f32 or f16, or the bytes of its rows."""
    if tensor.format is FORMATS.F32:
        return random.uniform(tensor.low, tensor.high, tensor.shape).astype(np.float32)
    *rows, cols = tensor.shape
    if tensor.format is FORMATS.F16:
        limit = (3 / math.prod(tensor.shape[1:])) ** 0.5
        return random.uniform(-limit, limit, tensor.shape).astype(np.float16)
    weights, size = gguf.GGML_QUANT_SIZES[tensor.format]
    begin = head(tensor.format, 1 / (DEVIATION[tensor.format] * cols**0.5))
    blocks = np.empty((*rows, cols // weights, size), np.uint8)
    blocks[..., : len(begin)] = np.frombuffer(begin, np.uint8)
    levels = random.integers(0, 256, (*blocks.shape[:-1], size - len(begin)), np.uint8)
    # -128 is no level of Q8_0.
    blocks[..., len(begin) :] = (
        np.where(levels == 128, 129, levels) if tensor.format is FORMATS.Q8_0 else levels
    )
    return blocks.reshape(*rows, -1)


def stored(tensor: Tensor) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and type of the array that `draw` gives, and its bytes."""
    if tensor.format in FLOATS:
        dtype = np.dtype(FLOATS[tensor.format])
        return tensor.shape, dtype, dtype.itemsize * math.prod(tensor.shape)
    shape = gguf.quant_shape_to_byte_shape(tensor.shape, tensor.format)
    return shape, np.dtype(np.uint8), int(np.prod(shape))


def write_random(
    config: dict[str, Any],
    destination: Path,
    seed: int = 0,
    blocks: gguf.GGMLQuantizationType = FORMATS.Q4_0,
) -> None:
    """Write the model of a `config.json`, tensor by tensor; `blocks` stand in place of Q4_0."""
    text = {"tie_word_embeddings": config.get("tie_word_embeddings", False), **config["text_config"]}
    writer = gguf.GGUFWriter(destination, "qwen35moe" if "num_experts" in text else "qwen35")
    add_config(writer, text)
    planned = [replace(t, format=blocks) if t.format is FORMATS.Q4_0 else t for t in tensors(text)]
    write_tensors(writer, planned, seed)


def write_tensors(writer: gguf.GGUFWriter, planned: Sequence[Tensor], seed: int) -> None:
    """Write a file whose keys are set, tensor by tensor."""
    for tensor in planned:
        shape, dtype, nbytes = stored(tensor)
        writer.add_tensor_info(tensor.name, shape, dtype, nbytes, tensor.format)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    for tensor in planned:
        writer.write_tensor_data(draw(random, tensor))
    writer.close()


def read_config(size: str) -> dict[str, Any]:
    """The `config.json` of a size of the family, or at a path."""
    path = SHAPES / f"{size}.json"
    config: dict[str, Any] = json.loads((path if path.exists() else Path(size)).read_text())
    return config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", help="0.8B, 2B, ..., or the path of a config.json")
    parser.add_argument("destination", type=Path)
    parser.add_argument("--blocks", default="Q4_0", choices=["Q4_0", "Q4_K"], help="of most matrices (Q4_0)")
    parser.add_argument("--layers", type=int, metavar="N", help="the first N layers only")
    arguments = parser.parse_args()
    config = read_config(arguments.size)
    if arguments.layers is not None:
        config["text_config"]["num_hidden_layers"] = arguments.layers
    write_random(config, arguments.destination, blocks=FORMATS[arguments.blocks])


if __name__ == "__main__":
    main()
