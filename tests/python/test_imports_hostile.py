"""Packed weights that are not what they claim: one error that names file, tensor or entry, and reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import golden
import imported
import packers
from edgewise import CheckpointError, Model, _native
from imported import Config
from packers import Module, Typed

WEIGHTS = np.linspace(-1, 1, 16 * 128, dtype=np.float32).reshape(16, 128)

METHODS: dict[str, tuple[packers.Packer, Config]] = {
    "gptq": (packers.gptq(), imported.gptq()),
    "awq": (packers.awq(), imported.awq()),
    "compressed": (packers.compressed(symmetric=False), imported.compressed(symmetric=False)),
    "fp8": (packers.fp8((128, 128)), imported.fp8([128, 128])),
    "mlx": (packers.mlx(32), imported.mlx(32)),
}


def refused(path: Path, module: Module, config: Config, reason: str) -> None:
    tensors = {f"m.{part}": tensor for part, tensor in module.items()}
    folder = imported.folder(path, tensors, {"quantization_config": config})
    with pytest.raises(CheckpointError) as caught:
        _native.convert(str(folder), str(folder / "out"))
    assert re.search(reason, str(caught.value)), caught.value
    assert str(path) in str(caught.value)
    assert not (folder / "out").exists()


PARTS = [
    ("gptq", "qzeros"),
    ("gptq", "scales"),
    ("awq", "qzeros"),
    ("awq", "scales"),
    ("compressed", "weight_scale"),
    ("compressed", "weight_shape"),
    ("fp8", "weight_scale_inv"),
    ("mlx", "scales"),
    ("mlx", "biases"),
]


@pytest.mark.parametrize(("method", "part"), PARTS)
def test_a_part_is_missing(method: str, part: str, tmp_path: Path) -> None:
    packer, config = METHODS[method]
    module = packer(WEIGHTS)[0]
    del module[part]
    refused(tmp_path, module, config, rf"tensor 'm\.{part}': is missing")


def test_zero_points_that_the_configuration_promises_are_missing(tmp_path: Path) -> None:
    packer, config = METHODS["compressed"]
    module = packer(WEIGHTS)[0]
    del module["weight_zero_point"]
    refused(tmp_path, module, config, r"'m\.weight_packed': .*not what any entry of config_groups describes")


SHAPES = [
    ("gptq", "scales", 0, "'m.qweight': shapes .* are not those of 4 bits in groups of 32"),
    ("gptq", "scales", 1, "'m.scales': has shape .*, the codes beside it need"),
    ("gptq", "qzeros", 0, "'m.qweight': shapes .* are not those of 4 bits in groups of 32"),
    ("gptq", "g_idx", 0, "'m.g_idx': has shape"),
    ("awq", "scales", 1, "'m.scales': has shape"),
    ("awq", "qzeros", 1, "'m.qzeros': has shape"),
    ("compressed", "weight_scale", 1, "'m.weight_packed': .*not what any entry"),
    ("compressed", "weight_zero_point", 1, "'m.weight_zero_point': has shape"),
    ("compressed", "weight_shape", 0, "'m.weight_shape': has shape"),
    ("fp8", "weight_scale_inv", 0, "'m.weight_scale_inv': has shape"),
    ("mlx", "scales", 1, "'m.scales': has shape"),
    ("mlx", "biases", 0, "'m.biases': has shape"),
]


@pytest.mark.parametrize("change", ["longer", "shorter", "flat", "empty"])
@pytest.mark.parametrize(("method", "part", "axis", "reason"), SHAPES)
def test_a_shape_does_not_fit(
    method: str, part: str, axis: int, reason: str, change: str, tmp_path: Path
) -> None:
    packer, config = METHODS[method]
    module = packer(WEIGHTS)[0]
    tensor = module[part]
    bits = tensor.bits if isinstance(tensor, Typed) else tensor
    changed = {
        "longer": lambda: np.concatenate([bits, bits], axis),
        "shorter": lambda: np.concatenate([bits, bits], axis).take(range(bits.shape[axis] - 1), axis),
        "flat": lambda: np.stack([bits, bits]),
        "empty": lambda: bits.take([], axis),
    }[change]()
    module[part] = Typed(tensor.dtype, changed) if isinstance(tensor, Typed) else changed
    reason += r"|has shape .*, a matrix is needed" if method != "compressed" else ""
    refused(tmp_path, module, config, reason)


@pytest.mark.parametrize("method", METHODS)
def test_codes_of_a_strange_shape(method: str, tmp_path: Path) -> None:
    packer, config = METHODS[method]
    main = {
        "gptq": "qweight",
        "awq": "qweight",
        "compressed": "weight_packed",
        "fp8": "weight",
        "mlx": "weight",
    }
    for i, shape in enumerate([(0, 16), (16, 0), (2, 2, 2, 2), (16,)]):
        module = packer(WEIGHTS)[0]
        tensor = module[main[method]]
        module[main[method]] = (
            Typed(tensor.dtype, np.zeros(shape, tensor.bits.dtype))
            if isinstance(tensor, Typed)
            else np.zeros(shape, tensor.dtype)
        )
        refused(tmp_path / str(i), module, config, rf"'m\.{main[method]}': (has shape|is empty)")


@pytest.mark.parametrize(
    ("group", "said"), [(4, "4"), (-1, "-1"), (2**31 - 1, "2147483647"), (-(2**31), "-2147483648")]
)
def test_a_column_in_no_group(group: int, said: str, tmp_path: Path) -> None:
    for method in ["gptq", "compressed"]:
        packer, config = METHODS[method]
        module = packer(WEIGHTS)[0]
        name = "g_idx" if method == "gptq" else "weight_g_idx"
        groups = (np.arange(128) // 32).astype(np.int32)
        groups[7] = group
        module[name] = groups
        if method == "compressed" and group == -1:
            continue  # there, a list that was never filled in
        refused(tmp_path / method, module, config, rf"'m\.{name}': column 7 is in group {said}, there are 4")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scale_is_not_finite(value: float, tmp_path: Path) -> None:
    packer, config = METHODS["gptq"]
    module = packer(WEIGHTS)[0]
    scales: Any = module["scales"]
    scales[0, 1] = value
    refused(tmp_path, module, config, r"'m\.scales': element 1 is (NaN|inf)")


def test_fp8_that_is_not_a_number(tmp_path: Path) -> None:
    packer, config = METHODS["fp8"]
    module = packer(WEIGHTS)[0]
    codes: Any = module["weight"]
    codes.bits[3, 5] = 0x7F
    refused(
        tmp_path, module, config, r"'m\.weight': the weight NaN at row 3, column 5 is not a finite number"
    )


def test_scales_that_no_half_holds(tmp_path: Path) -> None:
    packer, config = METHODS["fp8"]
    module = packer(WEIGHTS)[0]
    module["weight_scale_inv"] = np.full((1, 1), 1e30, np.float32)
    refused(tmp_path, module, config, r"'m\.weight': the weight .* is too large for the format")


@pytest.mark.parametrize("shape", [[-16, 128], [16, 2**62], [0, 128]])
def test_a_shape_that_is_none(shape: list[int], tmp_path: Path) -> None:
    packer, config = METHODS["compressed"]
    module = packer(WEIGHTS)[0] | {"weight_shape": np.array(shape, np.int64)}
    refused(tmp_path, module, config, r"'m\.weight_shape': is not the shape of a matrix")


def test_types_of_something_else(tmp_path: Path) -> None:
    packer, config = METHODS["gptq"]
    module = packer(WEIGHTS)[0] | {"scales": np.zeros((4, 16), np.int32)}
    refused(tmp_path / "a", module, config, r"'m\.scales': cannot read I32 as floating point")
    module = packer(WEIGHTS)[0]
    refused(
        tmp_path / "b",
        module | {"qzeros": np.zeros((4, 2), np.uint8)},
        config,
        r"'m\.qzeros': is U8, packed weights need I32",
    )


def test_a_list_says_what_the_tensors_deny(tmp_path: Path) -> None:
    for method, key in [("fp8", "modules_to_not_convert"), ("compressed", "ignore")]:
        packer, config = METHODS[method]
        module = packer(WEIGHTS)[0]
        refused(
            tmp_path / method, module, config | {key: ["m"]}, rf"{key}': lists 'm', whose tensors are packed"
        )
    packer, config = METHODS["mlx"]
    refused(
        tmp_path / "mlx", packer(WEIGHTS)[0], config | {"m": False}, "lists 'm', whose tensors are packed"
    )


CONFIGS: list[tuple[Config, str]] = [
    ({"quant_method": "bitsandbytes"}, "'bitsandbytes' are not supported; known: gptq, awq, "),
    ({}, "'unknown' are not supported; known: "),
    ({"quant_method": 3}, "must be a text, not 3"),
    (imported.gptq(bits=3), "bits': 3 is not supported; known: 4, 8"),
    (imported.gptq(checkpoint_format="marlin"), "checkpoint_format': 'marlin' is not supported"),
    (imported.gptq(group=0), "group_size': must be a whole number above 0 or -1, not 0"),
    ({"quant_method": "gptq", "bits": 4}, "group_size': is missing"),
    (imported.gptq(dynamic={"+:m": {"bits": 2}}), r"dynamic.\+:m.bits': 2 is not supported"),
    (imported.awq(version="gemv"), "version': 'gemv' is not supported; known: gemm"),
    (imported.awq(zero_point=False), "zero_point': false is not supported"),
    (imported.awq(bits=8), "bits': 8 is not supported; known: 4"),
    (imported.compressed("nvfp4-pack-quantized"), "format': 'nvfp4-pack-quantized' is not supported"),
    (imported.compressed(bits=3), "weights.num_bits': 3 is not supported"),
    (imported.compressed(kind="float"), "num_bits': 4 of a float is not supported"),
    (imported.compressed(strategy="token"), "strategy': 'token' is not supported"),
    (imported.compressed(strategy="block"), "block_structure': is missing"),
    ({"quant_method": "compressed-tensors"}, "config_groups': is missing"),
    (imported.compressed() | {"sparsity_config": {"format": "sparse-24"}}, "'sparse-24' is not supported"),
    (
        imported.compressed() | {"transform_config": {"config_groups": {"R1": {}}}},
        "transform_config': weights that were rotated are not supported",
    ),
    (imported.fp8([128]), "weight_block_size': must be two whole numbers"),
    (imported.fp8([128, 0]), "weight_block_size': must be two whole numbers"),
    (imported.fp8(None) | {"fmt": "e5m2"}, "fmt': 'e5m2' is not supported"),
    (imported.mlx(mode="mxfp4"), "mode': 'mxfp4' is not supported; known: affine"),
    (imported.mlx(bits=6), "bits': 6 is not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "reason"), CONFIGS)
def test_a_configuration_that_nothing_reads(config: Config, reason: str, tmp_path: Path) -> None:
    entries = golden.read_json("dense_text/config.json") | {"quantization_config": config}
    folder = imported.folder(tmp_path, {"m.weight": WEIGHTS}, entries)
    with pytest.raises(CheckpointError, match=r"config\.json: 'quantization_config") as opening:
        Model.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"config\.json: 'quantization_config") as converting:
        _native.convert(str(folder), str(folder / "out"))
    for caught in (opening, converting):
        assert re.search(reason, str(caught.value)), caught.value


def test_nothing_is_packed(tmp_path: Path) -> None:
    folder = imported.folder(tmp_path, {"m.weight": WEIGHTS}, {"quantization_config": imported.gptq()})
    with pytest.raises(CheckpointError, match="holds no weights that another program packed"):
        _native.convert(str(folder), str(folder / "out"))


def test_a_packed_matrix_of_another_size_than_the_model_needs(tmp_path: Path) -> None:
    packed, _ = imported.model(tmp_path, "dense_text", packers.gptq(), imported.gptq())
    config = golden.read_json("dense_text/config.json") | {"intermediate_size": 256}
    entries = config | {"quantization_config": imported.gptq()}
    (packed / "config.json").write_text(json.dumps(entries))
    with pytest.raises(
        CheckpointError, match=r"mlp\.\w+_proj\.weight': has shape \[128, 64\], the model needs \[256, 64\]"
    ):
        Model.from_pretrained(packed)


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        "language_model.model.embed_tokens.weight": WEIGHTS,
        "model.language_model.embed_tokens.weight": WEIGHTS,
    }
    folder = imported.folder(tmp_path, tensors, golden.read_json("dense_text/config.json"))
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight': stands for the same tensor as '"):
        Model.from_pretrained(folder)


@pytest.mark.parametrize("shape", [(0, 8, 8), (8, 8), (2, 0, 8), (2, 2, 2, 2)])
def test_stacks_of_experts_that_are_none(shape: tuple[int, ...], tmp_path: Path) -> None:
    packed, _ = imported.as_mlx(tmp_path, "moe_text", packers.mlx(32), imported.mlx(32))
    tensors: dict[str, Any] = dict(load_file(golden.FOLDER / "moe_text" / "model.safetensors"))
    name = "language_model.model.layers.0.mlp.switch_mlp.gate_proj.weight"
    experts = {key: value for key, value in tensors.items() if ".layers.0.mlp.experts." not in key}
    config = json.loads((packed / "config.json").read_text())
    folder = imported.folder(tmp_path / "bad", experts | {name: np.zeros(shape, np.uint32)}, config)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.experts"):
        Model.from_pretrained(folder)
