"""Make `tests/golden/gguf`: random blocks of GGUF's types, and the weights that the package `gguf` reads.

    python tools/make_gguf_golden.py [--out tests/golden/gguf]

`NAME.blocks` are bytes, `NAME.weights` f32. Scales are small f16 of either sign; all other bytes are random,
so that every bit of a block counts.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

# Bytes at which an f16 stands.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}
BLOCKS = 6


def random_blocks(random: np.random.Generator, name: str, count: int) -> np.ndarray:
    """Blocks `[count, bytes]` with scales of about 0.01."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    blocks = random.integers(0, 256, (count, size), np.uint8)
    for at in HALVES[name]:
        scales = random.normal(0, 0.01, (count, 1)).astype("<f2")
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("tests/golden/gguf"))
    out = parser.parse_args().out
    random = np.random.default_rng(7)
    arrays = {}
    for name in HALVES:
        blocks = random_blocks(random, name, BLOCKS)
        weights = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
        arrays[f"{name}.blocks"] = blocks
        arrays[f"{name}.weights"] = np.ascontiguousarray(weights.reshape(-1), np.float32)
    out.mkdir(parents=True, exist_ok=True)
    save_file(arrays, out / "blocks.safetensors", {"gguf": "see tools/make_gguf_golden.py"})


if __name__ == "__main__":
    main()
