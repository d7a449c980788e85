"""The engine's operations on numpy arrays, to look at and to compare with.

They run on the tier of vector instructions that `edgewise.tiers` names last, or the one that the environment
variable `EDGEWISE_ISA` forces, and have the same bits on all of them.

Each call copies its arguments: these are the parts of the engine, not a faster numpy.
"""

from edgewise._native import (
    dequantize_int4,
    dequantize_int8,
    gated_delta_rule,
    int4_matmul,
    int8_matmul,
    moe_feed_forward,
    quantize_int4,
    quantize_int8,
    rms_norm,
    route_top_k,
    short_conv,
)

__all__ = [
    "dequantize_int4",
    "dequantize_int8",
    "gated_delta_rule",
    "int4_matmul",
    "int8_matmul",
    "moe_feed_forward",
    "quantize_int4",
    "quantize_int8",
    "rms_norm",
    "route_top_k",
    "short_conv",
]
