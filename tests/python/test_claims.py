"""Sparse files of 20 GB, and headers that claim much: answered at once, no memory taken on their word."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIZE = 20 * 10**9
CONFIG = {
    "model_type": "qwen3", "vocab_size": 16, "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 1, "max_position_embeddings": 64, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 1e4,
}  # fmt: skip
# Opens a file in a process that may take 1 GB of memory in all, for which mapped files do not count.
PROGRAM = """
import resource, sys
import edgewise
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
limit = (1 << 30, 1 << 30)
resource.setrlimit(resource.RLIMIT_DATA, limit)
try:
    edgewise.Model.from_pretrained(sys.argv[1], dtype=sys.argv[2], threads=1)
except edgewise.CheckpointError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024)
"""


def header(path: Path, tensors: dict[str, Any], length: int | None = None) -> None:
    text = json.dumps(tensors).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)


def one_tensor(path: Path) -> None:
    rows = SIZE // 4 // 64
    entry = {"dtype": "F32", "shape": [rows, 64], "data_offsets": [0, rows * 256]}
    header(path, {"model.embed_tokens.weight": entry})
    os.truncate(path, path.stat().st_size + rows * 256)


def fitting_tensor(path: Path) -> None:
    """The configuration agrees with the header."""
    one_tensor(path)
    config = CONFIG | {"vocab_size": SIZE // 4 // 64}
    (path.parent / "config.json").write_text(json.dumps(config))


def long_header(path: Path) -> None:
    header(path, {}, length=100_000_000)
    os.truncate(path, SIZE)


def beyond(path: Path) -> None:
    header(path, {}, length=1 << 63)
    os.truncate(path, SIZE)


def gguf(path: Path, value: bytes) -> None:
    key = b"general.architecture"
    path.write_bytes(struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, len(key)) + key + value)
    os.truncate(path, SIZE)


def empty_strings(path: Path) -> None:
    """Two billion of them, all really there: a hole in the file reads as lengths of zero."""
    gguf(path, struct.pack("<IIQ", 9, 8, 2 * 10**9))


def long_string(path: Path) -> None:
    gguf(path, struct.pack("<IQ", 8, 19 * 10**9))


CASES: list[tuple[Callable[[Path], None], str]] = [
    (one_tensor, "[78125000, 64]"),
    (fitting_tensor, "'vocab_size': must be a whole number from 1 to 16777216, not 78125000"),
    (long_header, "header: trailing characters"),
    (beyond, "header length 9223372036854775808 is above the limit"),
    (empty_strings, "claims 2000000000 elements, the limit is 16777216"),
    (long_string, "has 19000000000 bytes, the limit is 67108864"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files and limits of memory as Linux has them")
@pytest.mark.parametrize(("write", "reason"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_file_of_20_gigabytes(write: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write(path)
    assert path.stat().st_size > SIZE - 4096
    assert path.stat().st_blocks * 512 < 1 << 20
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), "f32"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    message, megabytes = result.stdout.splitlines()
    assert reason in message, message
    assert int(megabytes) < 256, megabytes
