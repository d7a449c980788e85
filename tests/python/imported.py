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


def as_mlx(
    path: Path, case: str, packer: Packer, quantization: Config, *, apart: bool = False
) -> tuple[Path, Path]:
    """The same as `model`, as mlx-lm saves it: projections, embedding and head packed, under other names.

    With `apart`, the configuration tells bits and groups for each module, and something else for all.
    """
    hybrid = "linear_num_value_heads" in (config := golden.read_json(f"{case}/config.json"))
    tensors: dict[str, Array | Typed] = {}
    widened: dict[str, Array | Typed] = {}
    stacks: dict[str, list[dict[str, Array | Typed]]] = {}
    modules: Config = {}
    norms = ("_layernorm.weight", "model.norm.weight", ".q_norm.weight", ".k_norm.weight")
    originals = load_file(golden.FOLDER / case / "model.safetensors")
    for name in sorted(
        originals, key=lambda name: [int(part) if part.isdigit() else part for part in name.split(".")]
    ):
        array = widened[name] = originals[name].astype(np.float32)
        name = f"language_model.{name}"
        if name.endswith("conv1d.weight"):
            tensors[name] = np.moveaxis(array, 2, 1)
        elif hybrid and name.endswith(norms):
            tensors[name] = array + np.float32(1)
        elif array.ndim != 2 or array.shape[1] % 32 or "conv1d" in name:
            tensors[name] = array
        else:
            module, widened[name.removeprefix("language_model.")] = packer(array)
            stem = name.removesuffix(".weight")
            before, expert, after = stem.partition(".experts.")
            if expert:
                stem = f"{before}.switch_mlp.{after.partition('.')[2]}"
                stacks.setdefault(stem, []).append(module)
            else:
                tensors |= {f"{stem}.{part}": tensor for part, tensor in module.items()}
            modules[stem] = {key: quantization[key] for key in ("group_size", "bits")}
    for stem, experts in stacks.items():
        for part in experts[0]:
            tensors[f"{stem}.{part}"] = stack([expert[part] for expert in experts])
    settings = mlx(128, 8) | modules if apart else quantization
    packed = folder(
        path / "packed", tensors, config | {"quantization": settings, "quantization_config": settings}
    )
    return packed, folder(path / "widened", widened, config)


def stack(tensors: list[Array | Typed]) -> Array | Typed:
    bits = np.stack([tensor.bits if isinstance(tensor, Typed) else tensor for tensor in tensors])
    return Typed(tensors[0].dtype, bits) if isinstance(tensors[0], Typed) else bits


def stored(file: Path, name: str) -> tuple[str, Array]:
    """Format and weights float32 of a block tensor `[N, K]` in a file of ours, as docs/format.md has it."""
    with safe_open(file, "numpy") as opened:
        entry = json.loads(opened.metadata()["tensors"])[name]
        blocks = opened.get_tensor(name)
    size = {"int4": 256, "int4_asym": 256, "int8": 512}[entry["format"]]
    weights = blocks[..., :size].reshape(*blocks.shape[:2], -1, 16, 4)
    if entry["format"] == "int8":
        levels = weights.view(np.int8).astype(np.float32)
    else:
        levels = np.concatenate([weights & 15, weights >> 4], axis=2).astype(np.float32) - 8
    halves = np.ascontiguousarray(blocks[..., size:]).view("<f2").astype(np.float32)
    scales, offsets = halves[..., :16], halves[..., 16:]
    if entry["format"] == "int4_asym":
        levels = levels + offsets[:, :, None, :, None]
    values = (levels * scales[:, :, None, :, None]).transpose(0, 3, 1, 2, 4)
    rows, cols = entry["shape"]
    return entry["format"], values.reshape(blocks.shape[0] * 16, -1)[:rows, :cols]
