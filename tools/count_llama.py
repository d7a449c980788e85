"""Count the instructions that llama.cpp's products of INT4 weights take on ARM, to compare with ours.

    python tools/count_llama.py LLAMA_CPP

LLAMA_CPP is the source of llama.cpp (the sdist of llama-cpp-python has it as `vendor/llama.cpp`). Needs
aarch64-linux-gnu-g++ and qemu-aarch64-static. `tools/count_instructions.py` counts ours.

Their kernels are compiled alone, for each kind of processor as llama.cpp's build does for its variants, and
called on Q4_0 weights of COLUMNS columns, laid out as llama.cpp chooses for that processor. Under emulation,
every instruction executed is written to a log. The difference between two calls and one is what a call takes.
Data play no part: no kernel here branches on them.

    neon      no layout of its own: one dot product of a row of weights and of activations after the other
    dotprod   rows interleaved by 4 in groups of 4 columns
    i8mm      rows interleaved by 4 in groups of 8 columns

Not counted are products of 2 x 2 rows that llama.cpp may take in place of single ones (i8mm has its layout
instead), and the conversion of activations, which is shared by all rows.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64-static"
COLUMNS, ROWS = 1024, 64
PREFILL = 16
"""Tokens at once: what the largest of llama.cpp's loops takes."""

DOT = "for (int t = 0; t < TOKENS; t++) for (int r = 0; r < ROWS; r++)\n" + (
    "    ggml_vec_dot_q4_0_q8_0(COLUMNS, out, 0, weights, 0, activations, 0, 1);"
)
GEMV = "ggml_gemv_q4_0_{layout}_q8_0(COLUMNS, out, ROWS, weights, activations, 1, ROWS);"
GEMM = "ggml_gemm_q4_0_{layout}_q8_0(COLUMNS, out, ROWS, weights, activations, TOKENS, ROWS);"
VARIANTS = {
    # Tier: options of the compiler, processor to emulate, calls for one token and for several.
    "neon": ("armv8-a", "cortex-a53", DOT, DOT),
    "dotprod": ("armv8.2-a+dotprod", "cortex-a76", GEMV.format(layout="4x4"), GEMM.format(layout="4x4")),
    "i8mm": ("armv8.2-a+dotprod+i8mm", "max", GEMV.format(layout="4x8"), GEMM.format(layout="4x8")),
}
PROGRAM = """
#include <stdlib.h>
#include "ggml-cpu/quants.h"
#include "ggml-cpu/repack.h"
enum {{ COLUMNS = {columns}, ROWS = {rows}, TOKENS = {tokens} }};
static char weights[ROWS * COLUMNS], activations[2 * TOKENS * COLUMNS];
static float out[ROWS * TOKENS];
int main(int, char ** arguments) {{
    for (int calls = atoi(arguments[1]); calls > 0; calls--) {{
        {call}
    }}
}}
"""


def main() -> None:
    [source] = sys.argv[1:]
    ggml = Path(source).resolve() / "ggml"
    print("tier     tokens  instructions  of a block of 16 x 32 and a token  of a multiply-add")
    for tier, (options, cpu, one, several) in VARIANTS.items():
        for tokens, call in ((1, one), (PREFILL, several)):
            with tempfile.TemporaryDirectory() as scratch:
                program = build(ggml, Path(scratch), options, call, tokens)
                count = executed(program, cpu, 2) - executed(program, cpu, 1)
            products = COLUMNS * ROWS * tokens
            print(f"{tier:8} {tokens:6} {count:13} {512 * count / products:35.1f} {count / products:18.3f}")


def build(ggml: Path, scratch: Path, options: str, call: str, tokens: int) -> Path:
    """Compile the kernels with a program that calls them, without the rest of the library."""
    program, main_file = scratch / "program", scratch / "main.cpp"
    main_file.write_text(PROGRAM.format(columns=COLUMNS, rows=ROWS, tokens=tokens, call=call))
    kernels = [ggml / "src/ggml-cpu/arch/arm" / name for name in ("quants.c", "repack.cpp")]
    folders = [f"-I{ggml / name}" for name in ("include", "src", "src/ggml-cpu")]
    flags = ["-O3", "-DNDEBUG", '-DGGML_VERSION=""', '-DGGML_COMMIT=""', f"-march={options}", *folders]
    objects = []
    for file in [main_file, *kernels]:
        compiler = COMPILER.replace("g++", "gcc") if file.suffix == ".c" else COMPILER
        objects.append(scratch / f"{file.name}.o")
        run(compiler, *flags, "-c", file, "-o", objects[-1])
    # What the kernels would fall back on is never called.
    run(COMPILER, "-static", "-Wl,--unresolved-symbols=ignore-all", *objects, "-o", program)
    return program


def executed(program: Path, cpu: str, calls: int) -> int:
    """Return how many instructions `program` executes."""
    log = program.with_name("log")
    run(EMULATOR, "-cpu", cpu, "-singlestep", "-d", "exec,nochain", "-D", log, program, str(calls))
    with log.open("rb") as lines:
        return sum(line.startswith(b"Trace") for line in lines)


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stderr}")


if __name__ == "__main__":
    main()
