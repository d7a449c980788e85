"""Count the instructions of the products' inner loops in the ARM extension, without running it.

    python tools/count_instructions.py [LIBRARY]

LIBRARY is the one that `tools/emulate_arm.py` builds. A loop is found by its products: each handles one block
of 16 rows by 32 columns for a tile of tokens. Shown are instructions for a block and token, and what the
layout needs at least, each load counted for itself (so pairs of loads can be below it):

    products        sdot 32, smmla 16 (32 for a block and two tokens), smlal 64
    block           loads 16, expansions 32, for smmla 16 zips; scales 2 loads and 4 conversions: shared
    token           sums 4 to start and 4 to convert; scales 4 products; 4 multiply-adds; 2 loads of
                    activations, 2 of their scale and offset; smlal 8 loads of four activations, 8 to
                    add up; smmla 4 to sort
    asymmetric      offsets 2 loads and 4 conversions more; for a token a load of its sum, 4 multiply-adds
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


def main() -> None:
    library = Path(sys.argv[1]) if len(sys.argv) > 1 else LIBRARY
    rows = Counter(row for loop in loops(instructions(library)) if (row := described(loop)) is not None)
    print("tier     weights    tokens  instructions  a token  of them products  at least  ratio  loops")
    for (tier, weights, tokens, count, products), copies in sorted(rows.items()):
        least = least_of(tier, weights, tokens)
        print(
            f"{tier:8} {weights:9} {tokens:7} {count:13} {count / tokens:8.1f} {products / tokens:17.1f}"
            f"{least:10.1f} {count / tokens / least:6.2f} {copies:6}"
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


def described(loop: list[Instruction]) -> tuple[str, str, int, int, int] | None:
    """Return tier, weights, tokens, instructions and products of a loop over blocks, `None` of any other."""
    names = Counter(instruction.name for instruction in loop)
    if not names["scvtf"] or not names["fmla"]:
        return None
    tokens, rest = divmod(names["scvtf"], 4)
    nibbles = "int4" if names["ushr"] >= 16 else "int8"
    if names["fmla"] >= 8 * tokens:
        nibbles += "_asym"
    products = {
        "i8mm": names["smmla"],
        "dotprod": names["sdot"],
        "neon": sum(names[name] for name in ("smull", "smull2", "smlal", "smlal2")),
    }
    for tier, count in products.items():
        wanted = {"i8mm": 32 * ((tokens + 1) // 2), "dotprod": 32 * tokens, "neon": 64 * tokens}[tier]
        if count == wanted and not rest:
            return tier, nibbles, tokens, len(loop), count
    return None


def least_of(tier: str, weights: str, tokens: int) -> float:
    """Return the least number of SIMD instructions for a block and token, as the text above has it."""
    nibbles, offsets = weights.startswith("int4"), weights.endswith("asym")
    block = (16 + 32 if nibbles else 32) + (12 if offsets else 6)
    token = 4 + 4 + 4 + 4 + 2 + 2 + (5 if offsets else 0)
    if tier == "i8mm":
        block += 16 if nibbles else 32
        return block / tokens + token + 4 + 32 * ((tokens + 1) // 2) / tokens
    if tier == "dotprod":
        return block / tokens + token + 32
    return block / tokens + token + 8 + (8 if nibbles else 32 + 4) + 64


if __name__ == "__main__":
    main()
