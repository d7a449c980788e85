"""`benches/depth.py` runs, and what does not depend on time is as it claims."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benches" / "depth.py"
KV_BYTES_PER_TOKEN = {"bf16": 2 * 64 * 2, "f16": 2 * 64 * 2, "int8": 2 * (64 + 64 // 32 * 2)}
"""Keys and values of one head of 64; in int8 with an f16 scale for each 32 of them."""


def run(*arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), *arguments, "--rounds", "2", "--tokens", "2", "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("kv_dtype", KV_BYTES_PER_TOKEN)
def test_the_state_of_delta_layers_has_one_size(kv_dtype: str) -> None:
    output = run("--depths", "64", "256", "128", "--csv", "--kv-dtype", kv_dtype)
    rows = list(csv.DictReader(output.splitlines()))
    assert [(row["layers"], int(row["depth"])) for row in rows] == [
        (layers, depth) for layers in ("delta", "hybrid") for depth in (64, 128, 256)
    ]
    sizes = [int(row["state_bytes"]) for row in rows]
    assert sizes[0] == sizes[1] == sizes[2]
    assert [size - sizes[3] for size in sizes[3:]] == [
        tokens * KV_BYTES_PER_TOKEN[kv_dtype] for tokens in (0, 64, 192)
    ]
    assert {row["kv_dtype"] for row in rows} == {kv_dtype}
    assert all(float(row["us_per_token"]) > 0 for row in rows)
    assert rows[0]["times"] == rows[3]["times"] == "1.000"


def test_the_table_for_a_person() -> None:
    lines = run("--depths", "64").splitlines()
    assert "1 threads" in lines[0]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["layers", "depth"],
        ["delta", "64"],
        ["hybrid", "64"],
    ]
