"""What speed to expect on boards that nobody has measured: a model, not a measurement.

    python tools/board_model.py [SIZE...]

SIZE is a size of the family such as 0.8B. A token costs bytes and products, which are counted on random
weights in the true shapes. A board gives bytes a second, as published, and cycles:

    writing   the longer of    bytes of a token / bytes a second
                               blocks of a token x cycles of a block, of one token
    reading                    blocks of a token x cycles of a block, of a tile of tokens
    cycles of a block          the longest of  products / products a cycle
                                               vector instructions / vector instructions a cycle
                                               all instructions / instructions a cycle

A block is 16 rows by 32 columns. Its instructions are those of the loops that `tools/count_instructions.py`
counts. Where cycles decide, `REACHED` of that is expected: loops wait, and norms, attention and the delta
rule come on top. Whoever has such a board should replace this by what `edgewise bench` prints there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgewise import _native
from edgewise.benchmark import random_weights

BLOCK = 16 * 32
REACHED = 0.6
"""An assumption. On x86, reading 512 tokens reaches 0.53 of what the processor does of products alone."""
SIZES = ("0.8B", "2B", "4B")


@dataclass(frozen=True)
class Loop:
    """Instructions for a block and a token, and how many of them are products."""

    instructions: float
    products: float
    tokens: int

    def loads(self) -> float:
        """Return how many are loads: of the block, for all tokens, and of activations and their scales."""
        if self.tokens > STRIPS_FROM:
            # Weights and scales of four rows, four times; for a pair of tokens six registers, by twos.
            return 20 / self.tokens + 4 * 6 / 2 / 2
        return 17 / self.tokens + 4 + (8 if self.products == 64 else 0)


STRIPS_FROM = 3
"""Tokens of the largest tile that is not computed four rows at a time."""
LOOPS = {
    # Tier: INT4 (scales of 8 bits) for one token, for several, INT8 for one, for several.
    "neon": (Loop(172, 64, 1), Loop(148, 64, 2), Loop(166, 64, 1), Loop(158, 64, 2)),
    "dotprod": (Loop(110, 32, 1), Loop(62.3, 32, 12), Loop(80, 32, 1), Loop(58.7, 32, 12)),
    "i8mm": (Loop(110, 32, 1), Loop(45.3, 16, 12), Loop(80, 32, 1), Loop(47, 16, 12)),
}
"""What `tools/count_instructions.py` finds, and a quarter of what a span of four blocks takes: 3 for one
token alone, 4 for one of several, 5 with i8mm."""


@dataclass(frozen=True)
class Board:
    """Fast cores, what one does in a cycle, and what memory gives all of them."""

    name: str
    tier: str
    cores: int
    gigahertz: float
    products: float
    vectors: float
    instructions: float
    gigabytes: float
    """Of 10^9 bytes a second, when reading only."""

    def cycles(self, loop: Loop) -> float:
        """Return the least cycles for a block and a token."""
        return max(
            loop.products / self.products,
            (loop.instructions - loop.loads()) / self.vectors,
            loop.instructions / self.instructions,
        )


BOARDS = [
    # Cortex-A72 (optimisation guide: 3 dispatched, 2 vector pipes of which one multiplies integers). Memory:
    # STREAM as published, 5.6 GB/s of 12.8 (LPDDR4-3200, 32 bits).
    Board("Raspberry Pi 4", "neon", 4, 1.8, products=1, vectors=2, instructions=3, gigabytes=5.5),
    # Cortex-A76 (4 dispatched, 2 vector pipes, both with sdot). Memory: what llama.cpp reaches in writing,
    # 9.8 to 10.6 GB/s (its issue 26484) of 17.1 (LPDDR4X-4267, 32 bits).
    Board("Raspberry Pi 5", "dotprod", 4, 2.4, products=2, vectors=2, instructions=4, gigabytes=10),
    # Four Cortex-A715 or A710 (5 dispatched, 2 vector pipes, both with smmla). Memory: half of LPDDR5X-8400's
    # 67 GB/s (64 bits), an assumption.
    Board("phone of 2023", "i8mm", 4, 2.8, products=2, vectors=2, instructions=5, gigabytes=33),
]


@dataclass(frozen=True)
class Token:
    """What a token of one size costs, the context being short."""

    bytes_written: float
    """Read from memory to write one."""
    int4: float
    int8: float
    """Blocks of each format in the layers."""
    head: float
    """Blocks of the head, which is INT4."""


def token(size: str) -> Token:
    """Count what a token costs: in a short model, and what each more of its layers adds."""
    config = random_weights.shapes(size)
    period = 4
    few, more = counted(size, period), counted(size, 2 * period)
    steps = (random_weights.layer_count(config) - period) / period
    values = {name: few[name] + steps * (more[name] - few[name]) for name in few}
    int4_bytes, int8_bytes = BLOCK / 2 + 32, BLOCK + 32
    # With scales of 16 bits, which leave nothing behind the blocks of a panel, the layers' products and bytes
    # tell how many blocks have which format.
    blocks, size_of_layers = values["products"] / BLOCK, values["layer_bytes_f16"]
    int8 = max(0.0, (size_of_layers - blocks * int4_bytes) / (int8_bytes - int4_bytes))
    return Token(values["bytes"], blocks - int8, int8, values["head_bytes_f16"] / int4_bytes)


def counted(size: str, layers: int) -> dict[str, float]:
    """Count what a token costs in a model of few layers, and some bytes as if scales of INT4 were f16."""
    recipe = json.loads(_native.default_recipe("int4"))
    recipe["rules"][-1] = ["*", "int4"]
    with tempfile.TemporaryDirectory() as scratch:
        halves = Path(scratch) / "recipe.json"
        halves.write_text(json.dumps(recipe))
        wide = costs_of(size, layers, str(halves))
    values = costs_of(size, layers, "int4")
    return values | {f"{name}_f16": wide[name] for name in ("layer_bytes", "head_bytes")}


def costs_of(size: str, layers: int, recipe: str) -> dict[str, float]:
    """Count what a token costs in a model of few layers by this recipe."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "random.safetensors"
        random_weights.write_random(size, file, recipe, layers=layers)
        engine = _native.Engine.open(str(file))
        costs = engine.costs()
    operations = sum(costs["prefill_operations"].values()) + sum(costs["skipped_operations"].values())
    return {
        "bytes": costs["decode_bytes"],
        "products": operations / 2,
        "layer_bytes": costs["layer_bytes"],
        "head_bytes": costs["decode_bytes"] - costs["layer_bytes"] - costs["state_bytes"],
    }


def speeds(board: Board, one: Token) -> tuple[float, float, str]:
    """Return tokens a second when reading and when writing, and what limits writing."""
    int4_one, int4, int8_one, int8 = (board.cycles(loop) for loop in LOOPS[board.tier])
    rate = board.cores * board.gigahertz * 1e9 * REACHED
    reading = rate / (one.int4 * int4 + one.int8 * int8)
    cycles = (one.int4 + one.head) * int4_one + one.int8 * int8_one
    memory, arithmetic = board.gigabytes * 1e9 / one.bytes_written, rate / cycles
    return reading, min(memory, arithmetic), "memory" if memory < arithmetic else "cycles"


def main() -> None:
    print("A model, not a measurement: tokens a second.")
    print("board            size   reads  writes  limit of writing  GB for each token written")
    for size in sys.argv[1:] or SIZES:
        one = token(size)
        for board in BOARDS:
            reading, writing, limit = speeds(board, one)
            print(
                f"{board.name:16} {size:5} {reading:6.0f} {writing:7.1f}  "
                f"{limit:16} {one.bytes_written / 1e9:6.2f}"
            )


if __name__ == "__main__":
    main()
