"""Weights quantised as other programs store them, written from the descriptions of their formats, in numpy.

Each packer takes a matrix float32 [N, K] and gives the tensors of its module, by ending, and the weights that
these stand for. Nothing here shares code or order of steps with the readers under test.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Module = dict[str, "Array | Typed"]
Packer = Callable[[Array], tuple[Module, Array]]


@dataclass(frozen=True)
class Typed:
    """Bits of a type that numpy does not have."""

    dtype: str
    bits: Array


NAMES = {
    "uint8": "U8", "int8": "I8", "int32": "I32", "uint32": "U32", "int64": "I64",
    "float16": "F16", "float32": "F32",
}  # fmt: skip


def save(path: Path, tensors: Mapping[str, Array | Typed]) -> None:
    """Write a safetensors file; unlike the library for numpy, of any type."""
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors.items():
        typed = tensor if isinstance(tensor, Typed) else Typed(NAMES[tensor.dtype.name], tensor)
        raw = np.ascontiguousarray(typed.bits).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": typed.dtype, "shape": list(typed.bits.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def bf16(values: Array) -> tuple[Typed, Array]:
    """Round to bfloat16, to nearest even; gives the bits, and the values as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return Typed("BF16", rounded.astype(np.uint16)), (rounded << 16).astype(np.uint32).view(np.float32)


def f16(values: Array) -> tuple[Array, Array]:
    """Round to half precision; gives that, and the values as float32."""
    rounded = values.astype(np.float16)
    return rounded, rounded.astype(np.float32)


def grouped(weights: Array, group: int) -> Array:
    """[N, K] as [N, K / group, group]."""
    return weights.reshape(weights.shape[0], -1, group)


def grid(weights: Array, group: int, bits: int, symmetric: bool) -> tuple[Array, Array, Array]:
    """Codes [N, K], scales [N, G] and zero points [N, G] by the usual rule of least and greatest weight."""
    groups, top = grouped(weights, group), 2**bits - 1
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    if symmetric:
        scales = f16(np.maximum(np.abs(low), np.abs(high)) * 2 / top)[1]
        zeros = np.full(scales.shape, 2 ** (bits - 1))
    else:
        scales = f16(np.maximum(high - low, 1e-4) / top)[1]
        zeros = np.clip(np.rint(-low / scales), 0, top).astype(int)
    codes = np.clip(np.rint(groups / scales[..., None]) + zeros[..., None], 0, top).astype(int)
    return codes.reshape(weights.shape), scales, zeros


def plain(codes: Array, scales: Array, zeros: Array, groups: Array) -> Array:
    """The weights (code - zero) * scale, with the group of each column."""
    return ((codes - zeros[:, groups]) * scales[:, groups]).astype(np.float32)


def words(fields: Array, bits: int, dtype: type = np.int32) -> Array:
    """Pack the last axis, first field lowest, filled up with zeros."""
    per = 32 // bits
    padded = np.pad(fields, [(0, 0)] * (fields.ndim - 1) + [(0, -fields.shape[-1] % per)]).astype(np.uint64)
    split = padded.reshape(*padded.shape[:-1], -1, per)
    packed = sum(split[..., i] << np.uint64(bits * i) for i in range(per))
    return np.asarray(packed, np.uint64).astype(np.uint32).view(np.uint32).astype(dtype, casting="unsafe")


def gptq(
    group: int = 32,
    *,
    bits: int = 4,
    symmetric: bool = True,
    act_order: bool = False,
    version: int = 1,
    listed: bool = True,
) -> Packer:
    """GPTQ; `act_order` scatters the groups over the columns."""

    def pack(weights: Array) -> tuple[Module, Array]:
        cols = weights.shape[1]
        group_of = np.arange(cols) // group
        order = np.arange(cols)
        if act_order:
            order = np.random.default_rng(cols).permutation(cols)
            group_of = np.argsort(order) // group
        codes, scales, zeros = grid(weights[:, order], group, bits, symmetric)
        codes = codes[:, np.argsort(order)]
        stored = (zeros - (version == 1)) % 2**bits
        module: Module = {
            "qweight": words(codes, bits).T,
            "qzeros": words(stored.T, bits),
            "scales": scales.T.astype(np.float16),
        }
        if listed:
            module["g_idx"] = group_of.astype(np.int32)
        return module, plain(codes, scales, zeros, group_of)

    return pack


def awq(group: int = 32, symmetric: bool = False) -> Packer:
    """AWQ: eight outputs in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest nibble."""

    def interleaved(values: Array) -> Array:
        return words(values.reshape(values.shape[0], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]], 4)[..., 0]

    def pack(weights: Array) -> tuple[Module, Array]:
        codes, scales, zeros = grid(weights, group, 4, symmetric)
        module: Module = {
            "qweight": interleaved(codes.T),
            "qzeros": interleaved(zeros.T),
            "scales": scales.T.astype(np.float16),
        }
        return module, plain(codes, scales, zeros, np.arange(weights.shape[1]) // group)

    return pack


def compressed(
    group: int | None = 32,
    *,
    bits: int = 4,
    symmetric: bool = True,
    act_order: bool = False,
    dtype: str = "F16",
) -> Packer:
    """compressed-tensors, `pack-quantized`; without `group` one scale a row."""

    def pack(weights: Array) -> tuple[Module, Array]:
        rows, cols = weights.shape
        size = group or cols
        group_of = np.arange(cols) // size
        if act_order:
            group_of = np.random.default_rng(cols).permutation(group_of)
        sorted_columns = np.argsort(group_of, kind="stable")
        codes, scales, zeros = grid(weights[:, sorted_columns], size, bits, symmetric)
        codes = codes[:, np.argsort(sorted_columns)]
        stored: Array | Typed = scales.astype(np.float16)
        if dtype == "BF16":
            stored, scales = bf16(scales)
        module: Module = {
            "weight_packed": words(codes, bits),
            "weight_shape": np.array([rows, cols], np.int64),
            "weight_scale": stored,
        }
        if not symmetric:
            module["weight_zero_point"] = words(zeros.T, bits).T
        if act_order:
            module["weight_g_idx"] = group_of.astype(np.int32)
        return module, plain(codes, scales, zeros, group_of)

    return pack


def compressed_int8() -> Packer:
    """compressed-tensors, `int-quantized`: bytes, one scale a row."""

    def pack(weights: Array) -> tuple[Module, Array]:
        scales = f16(np.abs(weights).max(1, keepdims=True) / 127)[1]
        levels = np.clip(np.rint(weights / scales), -128, 127).astype(np.int8)
        return {"weight": levels, "weight_scale": scales}, levels * scales

    return pack


def _e4m3_values() -> Array:
    """The number of each byte from 0 to 0x7e."""
    byte = np.arange(127)
    exponent, fraction = byte >> 3, (byte & 7) / 8
    return np.where(exponent == 0, fraction * 2.0**-6, (1 + fraction) * 2.0 ** (exponent - 7.0))


E4M3 = _e4m3_values()


def e4m3(values: Array) -> tuple[Typed, Array]:
    """The nearest FP8; gives the bits, and the values as float32."""
    magnitude = np.clip(np.abs(values), 0, 448)
    right = np.clip(np.searchsorted(E4M3, magnitude), 1, 126)
    byte = np.where(magnitude - E4M3[right - 1] < E4M3[right] - magnitude, right - 1, right)
    found = np.copysign(E4M3[byte], values).astype(np.float32)
    return Typed("F8_E4M3", (byte | (values < 0) << 7).astype(np.uint8)), np.where(byte == 0, 0, found)


def fp8(block: tuple[int, int] | None, ending: str = "weight_scale_inv", single: bool = False) -> Packer:
    """FP8 with a scale for each block of rows and columns; without `block` for each row, or one in all."""

    def pack(weights: Array) -> tuple[Module, Array]:
        rows, cols = weights.shape
        size = block or ((rows if single else 1), cols)
        row_of, col_of = np.arange(rows) // size[0], np.arange(cols) // size[1]
        largest = np.zeros((row_of[-1] + 1, col_of[-1] + 1))
        np.maximum.at(largest, (row_of[:, None], col_of[None]), np.abs(weights))
        scales = (largest / 448).astype(np.float32)
        spread = scales[row_of][:, col_of]
        bits, values = e4m3(weights / spread)
        stored = scales.reshape(1) if single else scales
        return {"weight": bits, ending: stored}, values * spread

    return pack


def mlx(group: int = 64, bits: int = 4) -> Packer:
    """MLX's affine mode: the edge farther from 0 is kept, and 0 made a whole number of steps away from it."""

    def pack(weights: Array) -> tuple[Module, Array]:
        groups, top = grouped(weights, group), 2**bits - 1
        low, high = groups.min(-1), groups.max(-1)
        negative = np.abs(low) > np.abs(high)
        scales = np.maximum((high - low) / top, 1e-7) * np.where(negative, 1, -1)
        edge = np.where(negative, low, high)
        steps = np.rint(edge / scales)
        scales = np.where(steps == 0, scales, edge / np.where(steps == 0, 1, steps))
        codes = np.clip(np.rint((groups - edge[..., None]) / scales[..., None]), 0, top)
        (stored_scales, scales), (stored_biases, biases) = bf16(scales), bf16(np.where(steps == 0, 0, edge))
        values = (codes * scales[..., None] + biases[..., None]).astype(np.float32).reshape(weights.shape)
        packed = words(codes.reshape(weights.shape).astype(int), bits, np.uint32)
        return {"weight": packed, "scales": stored_scales, "biases": stored_biases}, values

    return pack
