"""Weights that another program quantised: what they become, and what whole models then compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import golden
import imported
import packers
from edgewise import Model, _native
from edgewise.cli.main import main
from edgewise.model import DType
from imported import Config
from packers import Array, Packer
from test_moe_models import stacked

EXACT: dict[str, tuple[str, Packer, Config]] = {
    "gptq": ("int4", packers.gptq(), imported.gptq()),
    "gptq groups of 64": ("int4", packers.gptq(64), imported.gptq(64)),
    "gptq groups of 128": ("int4", packers.gptq(128), imported.gptq(128)),
    "gptq one group a row": ("int4", packers.gptq(256), imported.gptq(-1)),
    "gptq without g_idx": ("int4", packers.gptq(listed=False), imported.gptq()),
    "gptq v2": ("int4", packers.gptq(version=2), imported.gptq(checkpoint_format="gptq_v2")),
    "gptq asymmetric": ("int4_asym", packers.gptq(64, symmetric=False), imported.gptq(64, sym=False)),
    "gptq asymmetric v2": (
        "int4_asym",
        packers.gptq(64, symmetric=False, version=2),
        imported.gptq(64, sym=False, checkpoint_format="gptq_v2"),
    ),
    "gptq override": (
        "int4",
        packers.gptq(64),
        imported.gptq(128, dynamic={"+:.*": {"group_size": 64}, "-:.*lm_head": {}}),
    ),
    "awq": ("int4_asym", packers.awq(), imported.awq()),
    "awq groups of 128": ("int4_asym", packers.awq(128), imported.awq(128)),
    "awq with zero points of 8": ("int4", packers.awq(64, symmetric=True), imported.awq(64)),
    "compressed-tensors": ("int4", packers.compressed(), imported.compressed()),
    "compressed-tensors groups of 128": (
        "int4",
        packers.compressed(128, dtype="BF16"),
        imported.compressed(group=128),
    ),
    "compressed-tensors by row": ("int4", packers.compressed(None), imported.compressed(group=None)),
    "compressed-tensors asymmetric": (
        "int4_asym",
        packers.compressed(64, symmetric=False),
        imported.compressed(group=64, symmetric=False),
    ),
}
"""Format it becomes, how it is packed, and what the configuration says: nothing is lost."""

HALF_STEP = 1 / 127 / 2
"""The most that rounding to INT8 can lose, of the largest weight of 32."""
CLOSE: dict[str, tuple[float, Packer, Config]] = {
    "gptq act-order": (HALF_STEP, packers.gptq(32, act_order=True), imported.gptq(desc_act=True)),
    "gptq 8 bits": (HALF_STEP, packers.gptq(64, bits=8), imported.gptq(64, bits=8)),
    "gptq groups of 48": (HALF_STEP, packers.gptq(48), imported.gptq(48)),
    "compressed-tensors act-order": (
        HALF_STEP,
        packers.compressed(64, act_order=True),
        imported.compressed(group=64, actorder="group"),
    ),
    "compressed-tensors 8 bits": (
        HALF_STEP,
        packers.compressed(None, bits=8),
        imported.compressed(bits=8, group=None),
    ),
    "compressed-tensors INT8": (
        HALF_STEP,
        packers.compressed_int8(),
        imported.compressed("int-quantized", bits=8, group=None),
    ),
    "compressed-tensors FP8 by row": (
        HALF_STEP,
        packers.fp8(None, "weight_scale"),
        imported.compressed("float-quantized", "float", 8, None),
    ),
    "compressed-tensors FP8 by matrix": (
        HALF_STEP,
        packers.fp8(None, "weight_scale", single=True),
        imported.compressed("float-quantized", "float", 8, None, strategy="tensor"),
    ),
    "compressed-tensors FP8 by block": (
        HALF_STEP,
        packers.fp8((32, 64), "weight_scale"),
        imported.compressed("float-quantized", "float", 8, None, strategy="block", block_structure=[32, 64]),
    ),
    "fp8": (HALF_STEP, packers.fp8((128, 128)), imported.fp8([128, 128])),
    "fp8 by matrix": (HALF_STEP, packers.fp8(None, single=True), imported.fp8(None)),
    "mlx 8 bits": (HALF_STEP, packers.mlx(64, 8), imported.mlx(64, 8)),
    "mlx override": (HALF_STEP, packers.mlx(32, 8), imported.mlx(64, 4, m={"group_size": 32, "bits": 8})),
}
"""The most it may lose, of the largest weight of 32; how it is packed, and what the configuration says."""

MLX: dict[str, tuple[Packer, Config]] = {
    "mlx": (packers.mlx(64), imported.mlx(64)),
    "mlx groups of 32": (packers.mlx(32), imported.mlx(32)),
    "mlx groups of 128": (packers.mlx(128), imported.mlx(128)),
}
"""MLX at 4 bits: the bias in steps of the scale is rounded to f16."""


def weights(rows: int = 40, cols: int = 256) -> Array:
    """Normally distributed, with rows of very different sizes."""
    rng = np.random.default_rng(rows)
    sizes = 10.0 ** rng.uniform(-2, 0, (rows, 1))
    return (rng.normal(size=(rows, cols)) * sizes).astype(np.float32)


def converted(folder: Path) -> tuple[dict[str, Any], str, Array]:
    """Report, format and weights of a checkpoint of one matrix."""
    file = folder / "out.edgewise"
    report = _native.convert(str(folder), str(file), 2)
    return report, *imported.stored(file, "m.weight")


@pytest.mark.parametrize("case", EXACT)
def test_a_matrix_on_our_grid_keeps_its_levels(case: str, tmp_path: Path) -> None:
    format, packer, config = EXACT[case]
    folder, wanted = imported.matrix(tmp_path, packer, weights(), config)
    report, found, values = converted(folder)
    assert found == format
    np.testing.assert_array_equal(values, wanted)
    assert report["formats"][format]["relative_squared_error"] == 0


@pytest.mark.parametrize("case", CLOSE)
def test_a_matrix_off_our_grid_is_rounded_to_int8(case: str, tmp_path: Path) -> None:
    bound, packer, config = CLOSE[case]
    matrix = weights(cols=192 if "48" in case else 256)
    folder, wanted = imported.matrix(tmp_path, packer, matrix, config)
    report, found, values = converted(folder)
    assert found == "int8"
    largest = np.abs(wanted.reshape(len(wanted), -1, 32)).max(-1).repeat(32, axis=1)
    # The scale is the one of least squares, so that the largest weights may be off by a little more.
    assert (np.abs(values - wanted) <= 1.5 * bound * largest).all()
    lost = ((values - wanted) ** 2).sum() / (wanted**2).sum()
    assert lost == pytest.approx(report["formats"]["int8"]["relative_squared_error"], rel=1e-3)
    assert np.sqrt(lost) < 0.008


@pytest.mark.parametrize("case", MLX)
def test_mlx_at_4_bits_keeps_its_levels(case: str, tmp_path: Path) -> None:
    packer, config = MLX[case]
    folder, wanted = imported.matrix(tmp_path, packer, weights(), config)
    report, found, values = converted(folder)
    assert found == "int4_asym"
    lost = ((values - wanted) ** 2).sum() / (wanted**2).sum()
    assert lost == pytest.approx(report["formats"][found]["relative_squared_error"], rel=1e-3, abs=1e-14)
    assert lost < 1e-8


@pytest.mark.parametrize("case", ["gptq", "gptq act-order", "awq", "compressed-tensors", "fp8", "mlx 8 bits"])
def test_the_reading_of_a_matrix_is_exact(case: str, tmp_path: Path) -> None:
    """Every number of f32, not only those that our blocks can hold."""
    _, packer, config = (EXACT | CLOSE)[case]
    folder, wanted = imported.matrix(tmp_path, packer, weights(), config)
    _native.quantize(str(folder), str(folder / "f32.edgewise"), "f32")
    with safe_open(folder / "f32.edgewise", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("m.weight"), wanted)


def test_zero_points_of_7_turn_the_sign_of_the_scale(tmp_path: Path) -> None:
    def pack(matrix: Array) -> tuple[packers.Module, Array]:
        codes, scales, _ = packers.grid(matrix, 32, 4, True)
        zeros = np.full(scales.shape, 7)
        module: packers.Module = {
            "qweight": packers.words(codes, 4).T,
            "qzeros": packers.words(zeros.T, 4),
            "scales": scales.T.astype(np.float16),
        }
        return module, packers.plain(codes, scales, zeros, np.arange(matrix.shape[1]) // 32)

    config = imported.gptq(checkpoint_format="gptq_v2")
    folder, wanted = imported.matrix(tmp_path, pack, weights(), config)
    _, format, values = converted(folder)
    assert format == "int4"
    np.testing.assert_array_equal(values, wanted)


def test_rows_and_columns_that_fill_no_block(tmp_path: Path) -> None:
    for rows, cols in [(8, 8), (16, 40), (24, 72)]:
        packer = packers.gptq(cols)
        folder, wanted = imported.matrix(tmp_path / str(rows), packer, weights(rows, cols), imported.gptq(-1))
        np.testing.assert_array_equal(converted(folder)[2], wanted)


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    folder, _ = imported.matrix(tmp_path, packers.mlx(64), weights(600), imported.mlx(64))
    for threads in (1, 2):
        _native.convert(str(folder), str(tmp_path / f"{threads}"), threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


MODELS: dict[str, tuple[Packer, Config]] = {
    "gptq": (packers.gptq(), imported.gptq()),
    "gptq act-order": (packers.gptq(act_order=True), imported.gptq(desc_act=True)),
    "gptq asymmetric": (packers.gptq(symmetric=False), imported.gptq(sym=False)),
    "awq": (packers.awq(), imported.awq()),
    "compressed-tensors": (packers.compressed(), imported.compressed()),
    "fp8": (packers.fp8((128, 128)), imported.fp8([128, 128])),
}


def logits(model: Model, case: str) -> Array:
    return np.concatenate(
        [model.logits(golden.prompt(name, i).ids) for name, i in golden.prompts() if name == case]
    )


@pytest.mark.parametrize("case", ["dense_text", "moe_text", "qwen3_next_text", "qwen3", "qwen3_moe", "llama"])
@pytest.mark.parametrize("method", MODELS)
class TestModels:
    def test_in_f32_it_is_the_model_of_the_weights_that_are_meant(
        self, method: str, case: str, tmp_path: Path
    ) -> None:
        packed, widened = imported.model(tmp_path, case, *MODELS[method])
        found = logits(Model.from_pretrained(packed, dtype="f32"), case)
        np.testing.assert_array_equal(found, logits(Model.from_pretrained(widened, dtype="f32"), case))

    def test_opened_or_converted_it_is_one_model_and_close(
        self, method: str, case: str, tmp_path: Path
    ) -> None:
        packed, widened = imported.model(tmp_path, case, *MODELS[method])
        file = tmp_path / "converted.safetensors"
        assert main(["convert", str(packed), str(file)]) == 0
        # Keys and values are not rounded: that alone sends tokens of so small a mixture to other experts.
        opened = logits(Model.from_pretrained(packed, kv_dtype="f32"), case)
        np.testing.assert_array_equal(opened, logits(Model.from_pretrained(file, kv_dtype="f32"), case))
        exact = logits(Model.from_pretrained(widened, dtype="f32"), case)
        int8 = logits(Model.from_pretrained(widened, dtype="int8", kv_dtype="f32"), case)
        # Activations are rounded in both; beside that, INT8 rounds the weights too.
        assert 0 < np.linalg.norm(opened - exact) < 1.2 * np.linalg.norm(int8 - exact)


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_a_dtype_is_the_same_recipe_when_opened_and_when_converted(dtype: DType, tmp_path: Path) -> None:
    packed, _ = imported.model(tmp_path, "dense_text", *MODELS["gptq"])
    file = tmp_path / "converted.safetensors"
    _native.quantize(str(packed), str(file), dtype)
    opened, converted = Model.from_pretrained(packed, dtype=dtype), Model.from_pretrained(file)
    found, wanted = (set(model.info()["formats"]) for model in (opened, converted))
    assert found == wanted
    # Levels with f16 scales stay where 4 bits are asked for; what was not packed gets scales of 8 bits.
    assert ("int4" in found) == (dtype == "int4")
    np.testing.assert_array_equal(logits(opened, "dense_text"), logits(converted, "dense_text"))


@pytest.mark.parametrize("case", ["dense_text", "moe_text", "qwen3_next_text", "qwen3", "qwen3_moe", "llama"])
@pytest.mark.parametrize(("bits", "apart"), [(4, False), (8, True)])
def test_models_as_mlx_saves_them(case: str, bits: int, apart: bool, tmp_path: Path) -> None:
    packer, config = packers.mlx(32, bits), imported.mlx(32, bits)
    packed, widened = imported.as_mlx(tmp_path, case, packer, config, apart=apart)
    exact = logits(Model.from_pretrained(widened, dtype="f32"), case)
    np.testing.assert_array_equal(logits(Model.from_pretrained(packed, dtype="f32"), case), exact)
    assert main(["convert", str(packed), str(tmp_path / "converted.safetensors")]) == 0
    opened = logits(Model.from_pretrained(packed), case)
    np.testing.assert_array_equal(
        opened, logits(Model.from_pretrained(tmp_path / "converted.safetensors"), case)
    )
    int8 = logits(Model.from_pretrained(widened, dtype="int8"), case)
    assert 0 < np.linalg.norm(opened - exact) < 1.5 * np.linalg.norm(int8 - exact)


def test_the_command_tells_what_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = imported.matrix(tmp_path, packers.gptq(), weights(), imported.gptq())
    file = str(tmp_path / "m.edgewise")
    assert main(["convert", str(folder), file]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["  format     lost", "  int4    nothing"]
    assert main(["convert", str(folder), file]) == 1
    assert "is there already; --force replaces it" in capsys.readouterr().err
    assert main(["convert", str(golden.FOLDER / "dense_text"), str(tmp_path / "plain")]) == 1
    assert "holds no weights that another program packed; quantise it" in capsys.readouterr().err


@pytest.mark.parametrize(("group", "bits"), [(32, 4), (64, 4), (128, 4), (64, 8)])
def test_what_mlx_itself_packed(group: int, bits: int, tmp_path: Path) -> None:
    """A recording of tools/make_mlx_golden.py; MLX may round the product before the sum, or only that."""
    raw = (golden.FOLDER / "mlx.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    tensors: dict[str, Array | packers.Typed] = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name.startswith(f"{group}.{bits}."):
            size = {"F32": np.float32, "U32": np.uint32, "BF16": np.uint16}[entry["dtype"]]
            begin, end = entry["data_offsets"]
            bits_of = np.frombuffer(raw[start + begin : start + end], size).reshape(entry["shape"])
            tensors[f"m.{name.rpartition('.')[2]}"] = packers.Typed(entry["dtype"], bits_of)
    wanted = tensors.pop("m.values")
    assert isinstance(wanted, packers.Typed)
    folder = imported.folder(tmp_path, tensors, {"quantization_config": imported.mlx(group, bits)})
    _native.quantize(str(folder), str(folder / "f32.edgewise"), "f32")
    with safe_open(folder / "f32.edgewise", "numpy") as file:
        np.testing.assert_allclose(file.get_tensor("m.weight"), wanted.bits, rtol=0, atol=1e-7)
    report, format, values = converted(folder)
    assert format == {4: "int4_asym", 8: "int8"}[bits]
    bound = {4: 1e-4, 8: 0.006}[bits]
    assert np.linalg.norm(values - wanted.bits) < bound * np.linalg.norm(wanted.bits)
    assert report["formats"][format]["relative_squared_error"] < bound**2


@pytest.mark.parametrize("block", [(32, 16), (128, 128)])
def test_stacks_of_experts_in_fp8(block: tuple[int, int], tmp_path: Path) -> None:
    tensors: dict[str, Array | packers.Typed] = {}
    widened: dict[str, Array | packers.Typed] = {}
    for name, array in stacked(load_file(golden.FOLDER / "moe_text" / "model.safetensors")).items():
        tensors[name] = widened[name] = array
        if array.ndim == 3 and ".experts." in name:
            packed = [packers.fp8(block)(matrix.astype(np.float32)) for matrix in array]
            tensors[name] = imported.stack([module["weight"] for module, _ in packed])
            tensors[f"{name}_scale_inv"] = imported.stack(
                [module["weight_scale_inv"] for module, _ in packed]
            )
            widened[name] = np.stack([values for _, values in packed])
    config = golden.read_json("moe_text/config.json")
    settings = {"quantization_config": imported.fp8(list(block))}
    folder = imported.folder(tmp_path / "packed", tensors, config | settings)
    plain = imported.folder(tmp_path / "widened", widened, config)
    exact = logits(Model.from_pretrained(plain, dtype="f32"), "moe_text")
    np.testing.assert_array_equal(logits(Model.from_pretrained(folder, dtype="f32"), "moe_text"), exact)
    assert main(["convert", str(folder), str(tmp_path / "converted.safetensors")]) == 0
    opened = logits(Model.from_pretrained(folder), "moe_text")
    np.testing.assert_array_equal(
        opened, logits(Model.from_pretrained(tmp_path / "converted.safetensors"), "moe_text")
    )
    np.testing.assert_array_equal(opened, logits(Model.from_pretrained(plain, dtype="int8"), "moe_text"))
