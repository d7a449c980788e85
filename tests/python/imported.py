"""Checkpoints with packed weights: whole models, single matrices, and what is in a converted file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

import golden
from packers import Array, Packer, Typed, save

Config = dict[str, Any]


def gptq(group: int = 32, bits: int = 4, **more: Any) -> Config:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": True, "desc_act": False} | more


def awq(group: int = 32, **more: Any) -> Config:
    return {
        "quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm",
    } | more  # fmt: skip


def compressed(
    format: str = "pack-quantized", kind: str = "int", bits: int = 4, group: int | None = 32, **more: Any
) -> Config:
    weights = {
        "type": kind, "num_bits": bits, "strategy": "group" if group else "channel", "group_size": group,
        "symmetric": True,
    }  # fmt: skip
    scheme = {"targets": ["Linear"], "weights": weights | more, "input_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"], "quantization_status": "compressed",
    }  # fmt: skip


def fp8(block: list[int] | None) -> Config:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}


def mlx(group: int = 64, bits: int = 4, **more: Any) -> Config:
    return {"group_size": group, "bits": bits, "mode": "affine"} | more


def folder(path: Path, tensors: dict[str, Array | Typed], config: Config) -> Path:
    """A checkpoint of these tensors."""
    path.mkdir(parents=True, exist_ok=True)
    save(path / "model.safetensors", tensors)
    (path / "config.json").write_text(json.dumps(config))
    return path


def matrix(path: Path, packer: Packer, weights: Array, quantization: Config) -> tuple[Path, Array]:
    """A checkpoint of one matrix `m`, and the weights it stands for."""
    module, values = packer(weights)
    tensors = {f"m.{part}": tensor for part, tensor in module.items()}
    return folder(path, tensors, {"quantization_config": quantization}), values


def is_packed(name: str, array: Array) -> bool:
    """Whether quantisers take it: a projection with whole words of rows and whole groups of columns."""
    inside = (
        (".layers." in name and name.endswith("_proj.weight")) or "in_proj_qkv" in name or "in_proj_z" in name
    )
    return inside and array.ndim == 2 and array.shape[0] % 8 == 0 and array.shape[1] % 32 == 0


def model(path: Path, case: str, packer: Packer, quantization: Config) -> tuple[Path, Path]:
    """The model of a golden case, packed; and in float32 with the weights that the packed ones mean."""
    tensors: dict[str, Array | Typed] = {}
    widened: dict[str, Array | Typed] = {}
    for name, array in load_file(golden.FOLDER / case / "model.safetensors").items():
        if not is_packed(name, array):
            tensors[name] = widened[name] = array
            continue
        module, widened[name] = packer(array.astype(np.float32))
        stem = name.removesuffix("weight")
        tensors |= {f"{stem}{part}": tensor for part, tensor in module.items()}
    config = golden.read_json(f"{case}/config.json")
    packed = folder(path / "packed", tensors, config | {"quantization_config": quantization})
    return packed, folder(path / "widened", widened, config)


def stored(file: Path, name: str) -> tuple[str, Array]:
    """Format and weights float32 of a block tensor `[N, K]` in a file of ours, as docs/format.md has it."""
    with safe_open(file, "numpy") as opened:
        entry = json.loads(opened.metadata()["tensors"])[name]
        blocks = opened.get_tensor(name)
    size = {"int4": 256, "int8": 512}[entry["format"]]
    weights = blocks[..., :size].reshape(*blocks.shape[:2], -1, 16, 4)
    if entry["format"] == "int8":
        levels = weights.view(np.int8).astype(np.float32)
    else:
        levels = np.concatenate([weights & 15, weights >> 4], axis=2).astype(np.float32) - 8
    scales = np.ascontiguousarray(blocks[..., size:]).view("<f2").astype(np.float32)
    values = (levels * scales[:, :, None, :, None]).transpose(0, 3, 1, 2, 4)
    rows, cols = entry["shape"]
    return entry["format"], values.reshape(blocks.shape[0] * 16, -1)[:rows, :cols]
