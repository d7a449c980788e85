"""Find instructions that not every processor has, in the extension of a wheel.

    python tools/check_baseline.py WHEEL...

A wheel is for any 64-bit x86 (x86-64-v1) or ARM (ARMv8.0) processor. More may stand only in functions that
are called after the processor was asked: those of the tiers, and a few of libraries, all named below. One
such instruction elsewhere ends the program on a processor without it, and no test on another one would tell.

    disassemble the extension (binutils)
    give each different instruction to the assembler, told to accept the plainest processor's only
    each refusal, in each function that has it: is the function guarded?

So the assembler knows what the plainest processor has, and no list of ours. The functions' names are those
of the symbol table, which is why wheels keep it. That the tiers' instructions are refused is demanded too: if
they were not, nothing would have been checked.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EXTENSION = "edgewise/_native.abi3.so"


@dataclass(frozen=True)
class Architecture:
    """What binutils call it, and what may need more than its plainest processor has."""

    machine: str
    plainest: tuple[str, ...]
    """The assembler's options."""
    comment: str
    """What ends an instruction in a disassembly."""
    tiers: tuple[str, ...]
    """Modules of the tiers: in each, something must be refused."""
    guarded: tuple[str, ...]
    """Patterns of other functions that are called only where their instructions are."""


ARCHITECTURES = {
    62: Architecture(
        machine="x86_64",
        plainest=("--64", "-march=generic64"),
        comment="#",
        tiers=(
            "edgewise::kernels::x86_64::maddubs::",
            "edgewise::kernels::x86_64::vnni::",
            "edgewise::kernels::x86_64::avx512::",
        ),
        guarded=(
            # Called where the processor says that it has them.
            r"half::binary16::arch::x86::\w+_f16c$",
            r"memchr::arch::x86_64::avx2::",
            r"memchr::arch::x86_64::memchr::\w+::find_avx2$",
            r"core::core_arch::x86::xsave::_xgetbv$",
            r"compiler_builtins::math::libm_math::arch::x86::fma::fmaf?_with_fma4?$",
        ),
    ),
    183: Architecture(
        machine="aarch64",
        plainest=("-march=armv8-a",),
        comment="//",
        tiers=(
            "edgewise::kernels::aarch64::dotprod::",
            "edgewise::kernels::aarch64::i8mm::",
        ),
        guarded=(
            # Atomic operations, which ask the processor each time.
            r"__aarch64_(cas|swp|ldadd|ldclr|ldeor|ldset)\d+_",
            # Unwinding, where a frame names registers of SVE, or the system says that there is SME.
            r"libunwind::(DwarfInstructions|UnwindCursor)<.*arm64",
            r"__libunwind_Registers_arm64_za_disable$",
        ),
    ),
}
"""By the number of the machine in an ELF file."""

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
LINE = re.compile(r"^\s*[0-9a-f]+:\s+(.*)$")
PLACE = re.compile(r"\b(0x)?[0-9a-f]+ <.*>")
"""A place in the program, as branches have it."""
REFUSED = re.compile(r":(\d+): Error: (.*)$")


def main() -> None:
    for wheel in sys.argv[1:]:
        print(f"{Path(wheel).name}: {check_wheel(Path(wheel))}")


def check_wheel(wheel: Path) -> str:
    """Check the extension of `wheel`; return what was found, and end the program if it is too much."""
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(wheel) as archive:
            library = Path(archive.extract(EXTENSION, scratch))
        architecture = architecture_of(library)
        found = above_baseline(disassemble(library, architecture), architecture)
    return judge(found, architecture)


def architecture_of(library: Path) -> Architecture:
    """Return the architecture that an ELF file is for."""
    header = library.read_bytes()[:20]
    number = int.from_bytes(header[18:20], "little")
    if not header.startswith(b"\x7fELF") or number not in ARCHITECTURES:
        raise SystemExit(
            f"{library}: no library for {' or '.join(a.machine for a in ARCHITECTURES.values())}"
        )
    return ARCHITECTURES[number]


def program(name: str, architecture: Architecture) -> str:
    """Return the path of one of the binutils for `architecture`."""
    own = [name] if platform.machine() == architecture.machine else []
    names = [f"{architecture.machine}-linux-gnu-{name}", *own]
    for path in filter(None, map(shutil.which, names)):
        return path
    raise SystemExit(
        f"needs {' or '.join(names)}: install binutils-{architecture.machine.replace('_', '-')}-linux-gnu"
    )


def disassemble(library: Path, architecture: Architecture) -> Iterable[str]:
    """Return the lines of a disassembly."""
    command = [
        program("objdump", architecture),
        "--disassemble",
        "--demangle",
        "--wide",
        "--no-show-raw-insn",
    ]
    done = subprocess.run([*command, library], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def functions(lines: Iterable[str], architecture: Architecture) -> dict[str, Counter[str]]:
    """Return the instructions of each function, as an assembler reads them, and how often each is there."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    name = ""
    for line in lines:
        if match := FUNCTION.match(line):
            name = match.group(1)
        elif match := LINE.match(line):
            found[name][readable(match.group(1), architecture)] += 1
    return found


def readable(instruction: str, architecture: Architecture) -> str:
    """Return an instruction of a disassembly without what an assembler does not read."""
    instruction = re.split(rf"\s+{architecture.comment}", instruction)[0]
    instruction = PLACE.sub(".", instruction).strip()
    # Prefixes that only fill up room, as often as there is room.
    instruction = re.sub(r"^(data16\s+)+", "", instruction)
    # One and the same code. Compilers write the plain one where both give the same result.
    return re.sub(r"^tzcnt\b", "rep bsf", instruction)


def refused(instructions: list[str], architecture: Architecture) -> dict[str, str]:
    """Return the instructions that the plainest processor does not have, and what the assembler says."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "instructions.s"
        source.write_text("".join(f"{instruction}\n" for instruction in instructions))
        command = [program("as", architecture), *architecture.plainest, "-o", "/dev/null", source]
        done = subprocess.run(command, capture_output=True, text=True)
    found = [match.groups() for line in done.stderr.splitlines() if (match := REFUSED.search(line))]
    if (done.returncode != 0) != bool(found):
        raise SystemExit(f"{command[0]}: {done.stderr[:1000]}")
    return {instructions[int(number) - 1]: reason for number, reason in found}


def above_baseline(lines: Iterable[str], architecture: Architecture) -> dict[str, Counter[str]]:
    """Return functions with instructions that the plainest processor lacks, and what the assembler says."""
    code = functions(lines, architecture)
    if not any(name.startswith("edgewise::") for name in code):
        raise SystemExit("the extension has no symbols: nothing tells its functions apart")
    reasons = refused(sorted({instruction for body in code.values() for instruction in body}), architecture)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, body in code.items():
        for instruction in body.keys() & reasons.keys():
            found[name][reasons[instruction]] += body[instruction]
    return found


def of_module(module: str) -> str:
    """Return a pattern for the beginnings of the names of a module's functions, and of its types' methods."""
    return f"<?{re.escape(module)}"


def judge(found: dict[str, Counter[str]], architecture: Architecture) -> str:
    """Return a summary; end the program if a function is not guarded, or a tier has nothing of its own."""
    allowed = re.compile("|".join([*map(of_module, architecture.tiers), *architecture.guarded]))
    foreign = {name: counts for name, counts in found.items() if not allowed.match(name)}
    if foreign:
        told = [f"  {name}: {counts.most_common(1)[0][0]}" for name, counts in sorted(foreign.items())]
        raise SystemExit("\n".join([f"above the baseline of {architecture.machine}:", *told]))
    counts = {
        tier: sum(sum(body.values()) for name, body in found.items() if re.match(of_module(tier), name))
        for tier in architecture.tiers
    }
    idle = [tier for tier, count in counts.items() if not count]
    if idle:
        raise SystemExit(f"no instruction above the baseline in {', '.join(idle)}: the check sees nothing")
    others = sum(not re.match("|".join(map(of_module, architecture.tiers)), name) for name in found)
    said = ", ".join(f"{tier.split('::')[-2]} {count}" for tier, count in counts.items())
    return f"instructions above the baseline: {said}, and {others} guarded functions of libraries; no others"


if __name__ == "__main__":
    main()
