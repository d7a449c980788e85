"""Count the instructions of the products' inner loops in the ARM extension, without running it.

    python tools/count_instructions.py [LIBRARY]

LIBRARY is the one that `tools/emulate_arm.py` builds. A loop is found by its products: each handles one block
of 16 rows by 32 columns, or four rows of one, for a tile of tokens. Shown are instructions for a block and
token, those that touch the stack (what did not fit the registers), and what the layout needs at least, each
load counted for itself (so pairs of loads can be below it):

    products        sdot 32, smmla 16 (32 for a block and two tokens), smlal 64
    block           loads 16, expansions 32; scales 2 loads and 4 conversions, of 8 bits 1 load and 10
                    conversions; smmla 16 zips and 8 of scales: shared by the tile. INT8: loads 32, no
                    expansions, smmla 32 zips
    token           sums 4 to start and 4 subtractions of where they started; 4 multiply-adds; 2 loads of
                    activations, 1 of what sums start from; smlal 8 loads of four activations, 8 to add up
                    (INT8 36)
    asymmetric      offsets 2 loads, 4 conversions, 8 to make them a factor and for smmla 8 zips: shared; for
                    a token 4 multiply-adds

What is done for a span of four blocks comes on top: of a token 4 multiply-adds with its scale, 9 loads and
stores.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1] / "target/arm/package/edgewise/_native.abi3.so"
OBJDUMP = "aarch64-linux-gnu-objdump"
LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
BRANCH = re.compile(r"^(b|b\.\w+|cbn?z|tbn?z)$")


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    operands: str


@dataclass(frozen=True, order=True)
class Row:
    """A loop as it is shown: `tokens` of a tile, and what a block of 16 rows takes for all of them."""

    tier: str
    weights: str
    tokens: int
    rows: int
    """Of a block that the loop handles at once."""
    instructions: int
    products: int
    stack: int

    def least(self) -> float:
        """Return the least number of SIMD instructions for a block and token, as the text above has it."""
        nibbles, asymmetric = self.weights.startswith("int4"), self.weights.endswith("asym")
        scales = 11 if self.weights.endswith("s8") else 6
        block = (16 + 32 if nibbles else 32) + scales + (14 if asymmetric else 0)
        token = 4 + 4 + 4 + 3 + (4 if asymmetric else 0)
        if self.tier == "i8mm":
            block += (16 if nibbles else 32) + 8 + (8 if asymmetric else 0)
            return block / self.tokens + token + 32 * ((self.tokens + 1) // 2) / self.tokens
        if self.tier == "dotprod":
            return block / self.tokens + token + 32
        return block / self.tokens + token + 8 + (8 if nibbles else 32 + 4) + 64


def main() -> None:
    library = Path(sys.argv[1]) if len(sys.argv) > 1 else LIBRARY
    found = Counter(row for loop in loops(instructions(library)) if (row := described(loop)) is not None)
    print("tier     weights    tokens  rows  instructions  a token  products  stack  at least  ratio  loops")
    for row, copies in sorted(found.items()):
        token, least = row.instructions / row.tokens, row.least()
        print(
            f"{row.tier:8} {row.weights:9} {row.tokens:7} {row.rows:5} {row.instructions:13} {token:8.1f} "
            f"{row.products / row.tokens:9.1f} {row.stack:6} {least:9.1f} {token / least:6.2f} {copies:6}"
        )


def instructions(library: Path) -> list[Instruction]:
    """Disassemble `library`."""
    command = [OBJDUMP, "-d", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [match.groups() for line in text.splitlines() if (match := LINE.match(line))]
    return [Instruction(int(address, 16), name, operands) for address, name, operands in found]


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """Return all loops that hold no other loop: from the target of a branch back to the branch."""
    place = {instruction.address: i for i, instruction in enumerate(code)}
    ranges = []
    for i, instruction in enumerate(code):
        if BRANCH.match(instruction.name):
            target = re.search(r"\b([0-9a-f]+) <", instruction.operands)
            start = place.get(int(target.group(1), 16)) if target else None
            if start is not None and start <= i:
                ranges.append((start, i + 1))
    ranges.sort(key=lambda ends: ends[1] - ends[0])
    inner: list[tuple[int, int]] = []
    for start, end in ranges:
        if end - start < 4000 and not any(start <= a and b <= end for a, b in inner):
            inner.append((start, end))
    return [code[start:end] for start, end in inner]


def described(loop: list[Instruction]) -> Row | None:
    """Return what is shown of a loop over blocks, `None` of any other."""
    names = Counter(instruction.name for instruction in loop)
    # What sums started from is subtracted as such, or as a product with 1.
    if not (names["fsub"] or names["fmls"]) or not names["fmla"]:
        return None
    # Scales of four rows are converted to floats by one instruction, those of sixteen by four.
    parts = 1 if names["fcvtl2"] or names["scvtf"] > 1 else 4
    # A multiply-add for each sum, and one with offsets, which take the only products of floats.
    asymmetric = names["fmul"] > 0
    tokens, rest = divmod(parts * names["fmla"] // (2 if asymmetric else 1), 4)
    weights = "int4" if parts * names["ushr"] >= 16 else "int8"
    if asymmetric:
        weights += "_asym"
    elif names["scvtf"]:
        weights += "_s8"
    stack = parts * sum("[sp" in instruction.operands for instruction in loop)
    products = {
        "i8mm": names["smmla"],
        "dotprod": names["sdot"],
        "neon": sum(names[name] for name in ("smull", "smull2", "smlal", "smlal2")),
    }
    for tier, count in products.items():
        wanted = {"i8mm": 32 * ((tokens + 1) // 2), "dotprod": 32 * tokens, "neon": 64 * tokens}[tier]
        if parts * count == wanted and not rest:
            return Row(tier, weights, tokens, 16 // parts, parts * len(loop), wanted, stack)
    return None


if __name__ == "__main__":
    main()
