"""Writes what the fuzz targets begin with: small valid files of each kind, recorded ones and new ones.

    python fuzz/make_corpus.py fuzz/corpus

Needs the standard library only.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TEXT = {
    "model_type": "qwen3", "vocab_size": 16, "hidden_size": 32, "intermediate_size": 32,
    "num_hidden_layers": 1, "max_position_embeddings": 64, "num_attention_heads": 1, "num_key_value_heads": 1,
    "head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": True,
}  # fmt: skip
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
MLX = {"group_size": 32, "bits": 4}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "strategy": "group",
                "group_size": 32,
                "symmetric": True,
            },
        }
    },
    "ignore": ["lm_head"],
}

Tensor = tuple[str, list[int], bytes]
SIZES = {"F32": 4, "I32": 4, "F16": 2, "U32": 4, "U8": 1, "F8_E4M3": 1}


def zeros(dtype: str, *shape: int) -> Tensor:
    """Return a tensor of zeros."""
    size = SIZES[dtype]
    for side in shape:
        size *= side
    return dtype, list(shape), bytes(size)


def header_and_data(
    tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> tuple[bytes, bytes]:
    """Return header and data of a safetensors file."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return json.dumps(header).encode(), data


def safetensors(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return a safetensors file."""
    header, data = header_and_data(tensors, metadata)
    return struct.pack("<Q", len(header)) + header + data


def text_model() -> dict[str, Tensor]:
    """Return all tensors of `TEXT`."""
    layer = "model.layers.0."
    matrices = [
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    ]
    vectors = ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"]
    return {
        "model.embed_tokens.weight": zeros("F32", 16, 32),
        "model.norm.weight": zeros("F32", 32),
        **{f"{layer}{name}.weight": zeros("F32", 32) for name in vectors},
        **{f"{layer}{name}.weight": zeros("F32", 32, 32) for name in matrices},
    }


def packed(config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the same with one projection packed."""
    tensors, name = text_model(), "model.layers.0.mlp.down_proj"
    del tensors[f"{name}.weight"]
    method = config.get("quant_method", "mlx")
    parts = {
        "gptq": {
            "qweight": zeros("I32", 4, 32),
            "qzeros": zeros("I32", 1, 4),
            "scales": zeros("F16", 1, 32),
            "g_idx": zeros("I32", 32),
        },
        "awq": {
            "qweight": zeros("I32", 32, 4),
            "qzeros": zeros("I32", 1, 4),
            "scales": zeros("F16", 1, 32),
        },
        "compressed-tensors": {
            "weight_packed": zeros("I32", 32, 4),
            "weight_scale": zeros("F16", 32, 1),
            "weight_shape": ("I32", [2], struct.pack("<2i", 32, 32)),
        },
        "fp8": {"weight": zeros("F8_E4M3", 32, 32), "weight_scale_inv": zeros("F32", 1, 1)},
        "mlx": {
            "weight": zeros("U32", 32, 4),
            "scales": zeros("F16", 32, 1),
            "biases": zeros("F16", 32, 1),
        },
    }[method]
    return tensors | {f"{name}.{part}": tensor for part, tensor in parts.items()}


def native() -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the same as a file of our own with one tensor in blocks, and its metadata."""
    tensors = text_model()
    blocks = {
        f"model.layers.0.mlp.{name}_proj.weight": {"format": format, "shape": [32, 32]}
        for name, format in [("up", "int4"), ("gate", "int4_s8")]
    }
    tensors["model.layers.0.mlp.up_proj.weight"] = zeros("U8", 2, 1, 288)
    tensors["model.layers.0.mlp.gate_proj.weight"] = zeros("U8", 2, 336)
    config = json.dumps(TEXT).encode()
    tensors["edgewise.files/config.json"] = ("U8", [len(config)], config)
    recipe = {"name": "t", "rules": [["*", "int4"]]}
    metadata = {
        "format": "edgewise",
        "format_version": "1",
        "recipe": json.dumps(recipe),
        "tensors": json.dumps(blocks),
    }
    return tensors, metadata


def gguf_value(value: object) -> bytes:
    """Return type and value of a key."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    assert isinstance(value, list)
    items = [gguf_value(item) for item in value]
    return (
        struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(i[4:] for i in items)
    )


def gguf_string(text: str) -> bytes:
    """Return a string with its length before it."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


GGUF_NAMES = {
    "token_embd": (16, 32),
    "output_norm": (32,),
    **{f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")},
    **{f"blk.0.ffn_{part}": (32, 32) for part in ("gate", "up", "down")},
    **{f"blk.0.{part}": (32,) for part in ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm")},
}


def gguf(kind: int, block: int, architecture: str = "qwen3", cut: str = "qwen2") -> bytes:
    """Return a model with matrices of one block type: its number, and the bytes of 32 weights."""
    keys: dict[str, Any] = {
        "general.architecture": architecture,
        "general.alignment": 32,
        f"{architecture}.block_count": 1,
        f"{architecture}.context_length": 64,
        f"{architecture}.embedding_length": 32,
        f"{architecture}.feed_forward_length": 32,
        f"{architecture}.attention.head_count": 1,
        f"{architecture}.attention.head_count_kv": 1,
        f"{architecture}.attention.key_length": 32,
        f"{architecture}.attention.value_length": 32,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{architecture}.rope.freq_base": 1e4,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": [chr(97 + i) for i in range(14)] + ["ab", "<|im_end|>"],
        "tokenizer.ggml.token_type": [1] * 15 + [3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 15,
        "tokenizer.ggml.add_bos_token": False,
    }
    names = {
        name: shape
        for name, shape in GGUF_NAMES.items()
        if architecture != "llama" or not name.endswith(("q_norm", "k_norm"))
    }
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(names), len(keys))
    head += b"".join(gguf_string(key) + gguf_value(value) for key, value in keys.items())
    data = b""
    for name, shape in names.items():
        is_matrix = len(shape) == 2
        elements = shape[0] * (shape[1] if is_matrix else 1)
        sides = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += gguf_string(f"{name}.weight") + struct.pack("<I", len(shape)) + sides
        head += struct.pack("<IQ", kind if is_matrix else 0, len(data))
        data += bytes(elements // 32 * block if is_matrix else 4 * elements)
        data += bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + data


def seeds() -> dict[str, list[bytes]]:
    """Return the files of each target."""
    configs = [json.loads(path.read_text()) for path in sorted(ROOT.glob("tests/golden/**/config.json"))]
    configs += [json.loads(path.read_text()) for path in sorted(ROOT.glob("python/edgewise/shapes/*.json"))]
    methods = [GPTQ, AWQ, FP8, MLX, COMPRESSED]
    configs += [TEXT | {"quantization_config": method} for method in methods]
    own = native()
    models = [(TEXT, text_model(), None), (TEXT, *own)]
    models += [(TEXT | {"quantization_config": method}, packed(method), None) for method in methods]
    parts = [(json.dumps(config).encode(), *header_and_data(*rest)) for config, *rest in models]
    return {
        "config": [json.dumps(config, separators=(",", ":")).encode() for config in configs],
        "safetensors": [
            safetensors(text_model()),
            safetensors(*own),
            safetensors({}),
            safetensors(packed(GPTQ)),
        ],
        "gguf": [
            *(gguf(0, 128), gguf(2, 18), gguf(3, 20), gguf(8, 34), gguf(20, 18)),
            gguf(3, 20, "llama", "smollm"),
        ],
        "checkpoint": [b"\0".join(part) for part in parts],
    }


def main() -> None:
    """Write the files."""
    for target, files in seeds().items():
        folder = Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        for i, content in enumerate(files):
            (folder / f"seed-{i:02}").write_bytes(content)


if __name__ == "__main__":
    main()
