"""Mixtures of experts in whole models: both layouts of their tensors, fused projections, what is refused.

Numbers against the original model code: `test_reference.py` (cases moe_text and qwen3_next_text).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import edgewise
import golden
from edgewise import Model, _native

MOE = golden.FOLDER / "moe_text"
NEXT = golden.FOLDER / "qwen3_next_text"
EXPERTS = 8

Tensors = dict[str, Any]


def write(folder: Path, tensors: Tensors, config: dict[str, Any] | None = None, of: Path = MOE) -> Path:
    """A checkpoint of these tensors, with the configuration of `of` and the changes of `config`."""
    folder.mkdir(exist_ok=True)
    entries = json.loads((of / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(entries))
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors"
    )
    return folder


def stacked(tensors: Tensors) -> Tensors:
    """The same weights as newer original code saves them: experts of a layer in two tensors."""
    rest = {name: array for name, array in tensors.items() if ".experts." not in name}
    for name in [name for name in tensors if name.endswith(".experts.0.down_proj.weight")]:
        prefix = name.removesuffix("0.down_proj.weight")
        each = [
            [tensors[f"{prefix}{i}.{kind}_proj.weight"] for i in range(EXPERTS)]
            for kind in ["gate", "up", "down"]
        ]
        gate, up, down = (np.stack(matrices) for matrices in each)
        rest[f"{prefix}gate_up_proj"] = np.concatenate([gate, up], axis=1)
        rest[f"{prefix}down_proj"] = down
    return rest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    return write(folder / "stacked", stacked(load_file(MOE / "model.safetensors")))


def logits(path: Path, **options: Any) -> golden.Array:
    return Model.from_pretrained(path, **options).logits(golden.prompt("moe_text", 2).ids)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8", "int4"])
def test_both_layouts_give_the_same_bits(packed: Path, dtype: str) -> None:
    np.testing.assert_array_equal(logits(packed, dtype=dtype), logits(MOE, dtype=dtype))


@pytest.mark.parametrize("recipe", ["int4", "int8", "bf16"])
def test_a_converted_file_of_either_layout_gives_the_same_bits(
    packed: Path, folder: Path, recipe: str
) -> None:
    wanted = logits(MOE, recipe=recipe)
    for source in [packed, MOE]:
        target = folder / f"{source.name}-{recipe}.safetensors"
        _native.quantize(str(source), str(target), recipe)
        np.testing.assert_array_equal(logits(target), wanted)


def test_a_converted_file_has_the_fused_projections_apart(folder: Path) -> None:
    target = folder / "next.safetensors"
    _native.quantize(str(NEXT), str(target), "keep")
    with safe_open(target, "numpy") as file:
        names = set(file.keys())
    prefix = "model.layers.0.linear_attn."
    assert {f"{prefix}in_proj_{kind}.weight" for kind in ["qkv", "z", "a", "b"]} <= names
    assert not any(name.endswith(("in_proj_qkvz.weight", "in_proj_ba.weight")) for name in names)
    ids = golden.prompt("qwen3_next_text", 1).ids
    fused, apart = (Model.from_pretrained(path, dtype="f32").logits(ids) for path in [NEXT, target])
    np.testing.assert_array_equal(apart, fused)


def test_a_full_model_reads_its_text_model_below_a_prefix(folder: Path) -> None:
    """As `qwen3_5_moe` checkpoints are published; without tensors of a tower it reads text."""
    config = json.loads((MOE / "config.json").read_text())
    vision = json.loads((golden.FOLDER / "image" / "config.json").read_text())
    tower = vision["vision_config"] | {"out_hidden_size": config["hidden_size"]}
    outer = {key: vision[key] for key in vision if key.endswith("_token_id")}
    outer |= {"model_type": "qwen3_5_moe", "text_config": config, "vision_config": tower}
    tensors = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: array
        for name, array in stacked(load_file(MOE / "model.safetensors")).items()
    }
    path = write(folder / "full", tensors, of=MOE)
    (path / "config.json").write_text(json.dumps(outer))
    np.testing.assert_array_equal(logits(path, dtype="f32"), logits(MOE, dtype="f32"))


def test_a_model_with_experts_sees_what_the_original_sees() -> None:
    recorded = golden.arrays("moe_image")
    engine = _native.Engine.open(str(golden.FOLDER / "moe_image"), "f32")
    _, rows, columns = recorded["image_grid_thw"][0].tolist()
    pixels = recorded["pixel_levels"].astype(np.float32) / np.float32(127.5) - np.float32(1)
    features = engine.encode(pixels, (rows, columns))
    ids = recorded["input_ids"].tolist()
    vision = engine.vision
    assert vision is not None
    media = [(ids.index(vision["image_token_id"]), features)]
    tolerance = golden.tolerance("moe_image", "logits")
    assert golden.difference("logits", engine.logits(ids, media), recorded["logits"], tolerance) is None
    sequence = engine.sequence()
    sequence.append(ids, media)
    greedy = []
    for _ in recorded["greedy"]:
        greedy.append(int(sequence.logits().argmax()))
        sequence.append(greedy[-1:])
    assert greedy == recorded["greedy"].tolist()


def test_info_counts_every_expert() -> None:
    tensors = load_file(MOE / "model.safetensors")
    model = Model.from_pretrained(MOE, dtype="f32")
    assert model.info()["parameters"] == sum(array.size for array in tensors.values())


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        ("mlp.experts.7.up_proj.weight", "model.layers.0.mlp.experts.7.up_proj.weight"),
        ("mlp.gate.weight", "model.layers.0.mlp.gate.weight"),
        ("mlp.shared_expert_gate.weight", "model.layers.0.mlp.shared_expert_gate.weight"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, missing: str, name: str) -> None:
    tensors = load_file(MOE / "model.safetensors")
    del tensors[f"model.layers.0.{missing}"]
    with pytest.raises(edgewise.CheckpointError, match=rf"'{name}': is missing"):
        Model.from_pretrained(write(tmp_path / "m", tensors))


def test_a_wrong_count_of_experts_is_an_error(tmp_path: Path, packed: Path) -> None:
    more = write(tmp_path / "more", load_file(packed / "model.safetensors"), {"num_experts": 9})
    with pytest.raises(edgewise.CheckpointError, match=r"has shape \[8, 64\], the model needs \[9, 64\]"):
        Model.from_pretrained(more)
    tensors = load_file(packed / "model.safetensors")
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = tensors["model.layers.0.mlp.experts.gate_up_proj"][
        :7
    ]
    with pytest.raises(
        edgewise.CheckpointError, match=r"gate_up_proj': has shape \[7, 64, 64\], the model needs"
    ):
        Model.from_pretrained(write(tmp_path / "fewer", tensors))


def test_fused_projections_of_another_size_are_an_error(tmp_path: Path) -> None:
    tensors = load_file(NEXT / "model.safetensors")
    name = "model.layers.0.linear_attn.in_proj_ba.weight"
    tensors[name] = tensors[name][:-1]
    path = write(tmp_path / "m", tensors, of=NEXT)
    reason = r"in_proj_ba.weight': has shape \[7, 64\], the model needs 8"
    with pytest.raises(edgewise.CheckpointError, match=reason):
        Model.from_pretrained(path)
    with pytest.raises(edgewise.CheckpointError, match=reason):
        _native.quantize(str(path), str(tmp_path / "q.safetensors"))


def test_a_broken_expert_is_found_when_a_token_comes_there(folder: Path) -> None:
    """Experts are not read at opening: the unit that is infinite shows in the logits, and is named."""
    target = folder / "broken.safetensors"
    _native.quantize(str(MOE), str(target))
    name = "model.layers.0.mlp.experts.3.down_proj.weight"
    with safe_open(target, "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(target)
    tensors[name][:, -4:] = (0x00, 0x00, 0x80, 0x7F)
    save_file(tensors, target, metadata)
    model = Model.from_pretrained(target)
    with pytest.raises(
        edgewise.NonFiniteError, match=r"tensor 'layers.0.mlp.experts.3.down_proj.weight' holds NaN"
    ):
        model.logits(golden.prompt("moe_text", 2).ids)
