"""The model of boards: its counts against the engine's, its formulas on boards that are easy to reckon."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("board_model")


def test_a_short_model_tells_what_a_longer_one_costs(model: ModuleType) -> None:
    few, more, most = (model.counted("0.8B", layers) for layers in (4, 8, 12))
    assert set(few) == {
        *("bytes", "products", "layer_bytes", "head_bytes"),
        *("layer_bytes_f16", "head_bytes_f16"),
    }
    for name in few:
        assert most[name] - more[name] == more[name] - few[name], name
    # A head of 248,320 rows of 1,024 columns, a unit of 32 bits for each row, and a few bytes for one row of
    # the embedding and the last norm.
    assert few["head_bytes"] == pytest.approx(248_320 * (1_024 * 4.25 / 8 + 4), rel=1e-3)
    assert few["head_bytes_f16"] == pytest.approx(248_320 * 1_024 * 4.5 / 8, rel=1e-3)


def test_a_token_of_the_whole_model(model: ModuleType) -> None:
    one = model.token("0.8B")
    products = 512 * (one.int4 + one.int8)
    # 24 layers: gate, up and down projection alone are 3 x 1024 x 3584 each.
    assert 24 * 3 * 1024 * 3584 < products < 2 * 24 * 3 * 1024 * 3584
    assert one.int8 < 0.01 * one.int4
    # 16 heads of 18 delta layers: a state of 128 x 128, three inputs of the convolution, and half of 16
    # fades, 7 keys and 7 deltas.
    states = 18 * 4 * 16 * (128 * 128 + 3 * 3 * 128 + (16 + 7 * 2 * 128) / 2)
    assert one.bytes_written == pytest.approx((one.int4 + one.head) * 272 + states, rel=0.02)
    assert one.bytes_written < 430e6


def test_writing_is_bound_by_memory_or_by_cycles(model: ModuleType) -> None:
    one = model.Token(bytes_written=1e9, int4=1e6, int8=0, head=1e6)
    board = model.Board("", "dotprod", 2, 1.0, products=1, vectors=1000, instructions=1000, gigabytes=4)
    # 32 products of a block and token, one a cycle: 32 cycles.
    reading, writing, limit = model.speeds(board, one)
    assert reading == pytest.approx(2e9 * model.REACHED / 32e6)
    assert (writing, limit) == (4, "memory")
    reading, writing, limit = model.speeds(dataclasses.replace(board, gigabytes=1000), one)
    assert writing == pytest.approx(2e9 * model.REACHED / 64e6)
    assert limit == "cycles"


@pytest.mark.parametrize(
    ("products", "vectors", "instructions", "cycles"),
    [(2, 1e9, 1e9, 32), (1e9, 2, 1e9, (172 - 29) / 2), (1e9, 1e9, 2, 86)],
)
def test_the_slowest_part_decides(
    products: float, vectors: float, instructions: float, cycles: float, model: ModuleType
) -> None:
    board = model.Board("", "neon", 1, 1.0, products, vectors, instructions, 1.0)
    assert board.cycles(model.LOOPS["neon"][0]) == pytest.approx(cycles)
