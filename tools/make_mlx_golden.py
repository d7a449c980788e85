"""Record how MLX itself packs matrices: `pip install "mlx[cpu]"`, then `python tools/make_mlx_golden.py`.

For each of a few settings, `tests/golden/mlx.safetensors` has what `mx.quantize` makes of a matrix, and what
`mx.dequantize` gives back, in f32.
"""

from pathlib import Path

import mlx.core as mx  # type: ignore[import-not-found]
import numpy as np

DESTINATION = Path(__file__).parents[1] / "tests" / "golden" / "mlx.safetensors"
SETTINGS = [(32, 4), (64, 4), (128, 4), (64, 8)]


def main() -> None:
    """Write the recording."""
    rng = np.random.default_rng(0)
    tensors = {}
    for group, bits in SETTINGS:
        matrix = mx.array(rng.normal(size=(16, 128)).astype(np.float32) / 8).astype(mx.bfloat16)
        weight, scales, biases = mx.quantize(matrix, group_size=group, bits=bits)
        values = mx.dequantize(
            weight, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits
        )
        named = {"weight": weight, "scales": scales, "biases": biases, "values": values}
        tensors |= {f"{group}.{bits}.{name}": tensor for name, tensor in named.items()}
    mx.save_safetensors(str(DESTINATION), tensors)


if __name__ == "__main__":
    main()
