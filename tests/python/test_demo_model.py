"""The model in the package is what `make demo-model` makes of `tools/demo/checkpoint`."""

from pathlib import Path

import pytest

from edgewise import _native, hub

SOURCE = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"


@pytest.mark.parametrize("threads", [1, 3])
def test_converting_again_gives_the_same_bytes(tmp_path: Path, threads: int) -> None:
    converted = tmp_path / "demo.safetensors"
    _native.quantize(str(SOURCE), str(converted), "int4", threads)
    same = converted.read_bytes() == hub.DEMO_FILE.read_bytes()
    assert same, "run 'make demo-model' if the format, recipe or checkpoint was changed on purpose"
