"""edgewise beside llama.cpp: the same shapes and bits, random weights, measured in turns in one run.

    python benches/compare.py --shapes 0.8B --llama-python ~/llama/bin/python

Each round starts a process of either engine, in changing order; figures are medians over the rounds, ratios
are medians of each round's own ratio. Both files have 4 bits with a scale for 32 columns in every large
matrix, the head among them: llama.cpp's Q4_0 an f16, edgewise's 8 bits, so 4.5 and 4.25 bits a weight.
edgewise's also has the vision tower. Behind the first token edgewise's weights
move into large pages at once, as they do little by little in a process that writes. The machine must be
quiet: other programs cost an engine whose threads wait for each other by spinning far more than one whose
threads do not.

With `--image 640x480` it is measured, in place of text, from the pixels of an image to the first token, with
22 tokens of text around it, and how much memory that takes. Both models are opened with their towers then.
llama.cpp's is f16, as published ones are, or with `--tower Q8_0` has the 8 bits that edgewise's has.

llama.cpp comes with llama-cpp-python, in an environment of its own, compiled for the processor at hand:

    python -m venv ~/llama && ~/llama/bin/pip install gguf
    CMAKE_ARGS=-DGGML_NATIVE=ON ~/llama/bin/pip install --no-binary llama-cpp-python llama-cpp-python

A build without instructions that this processor has is refused.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import provenance
from edgewise import _native, benchmark

HERE = Path(__file__).parent
OURS, THEIRS = "edgewise", "llama.cpp"
TOWER, WORDS = "tower.gguf", "words.gguf"
"""What llama.cpp sees with, beside its file."""
FEATURES = {
    "AVX": "avx",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512_vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "NEON": "asimd",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
}
"""Instructions by llama.cpp's name and Linux's."""

Figures = dict[str, float]


def processor_flags() -> set[str]:
    """Instructions of this processor, as Linux names them; empty where it does not tell."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = (line for line in lines if re.match(r"(flags|Features)\s*:", line))
    return set(next(found, ":").split(":", 1)[1].split())


def missing_features(about: str, flags: set[str]) -> list[str]:
    """Instructions that the processor has and that llama.cpp, by what it tells of itself, does without."""
    built = set(re.findall(r"(\w+) = 1", about))
    return [name for name, flag in FEATURES.items() if flag in flags and name not in built]


def run_worker(python: str, engine: str, file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One round of one engine."""
    script = "compare_worker.py" if arguments.image is None else "compare_image_worker.py"
    command = [python, str(HERE / script), engine, str(file), "--threads", str(arguments.threads)]
    if arguments.image is None:
        command += ["--new-tokens", str(arguments.new_tokens)] + (["--long"] if arguments.long else [])
    else:
        command += ["--image", arguments.image]
        command += ["--tower", str(file.with_name(TOWER)), "--words", str(file.with_name(WORDS))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{engine} failed:\n{done.stderr}{done.stdout}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_llama(python: str) -> None:
    """End with the way to install what is missing, if anything is."""
    command = [python, "-c", "import llama_cpp, gguf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:]
        raise SystemExit(f"{python} has no llama.cpp: {' '.join(reason)}\n\n{__doc__}")


def write_files(folder: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Random weights for each engine that is to be measured."""
    files = {OURS: folder / "random.safetensors"}
    path = Path(arguments.shapes)
    config = path.read_text() if path.suffix == ".json" else benchmark.shapes(arguments.shapes)
    config = config if arguments.layers is None else benchmark.with_layers(config, arguments.layers)
    _native.write_random(config, str(files[OURS]), "int4")
    if arguments.only is None:
        files[THEIRS] = folder / "random.gguf"
        command = [arguments.llama_python, str(HERE / "random_gguf.py"), arguments.shapes, str(files[THEIRS])]
        command += [] if arguments.layers is None else ["--layers", str(arguments.layers)]
        subprocess.run(command, check=True)
    if arguments.only is None and arguments.image is not None:
        command = [arguments.llama_python, str(HERE / "random_mmproj.py"), arguments.shapes]
        command += [str(folder / TOWER), str(folder / WORDS), "--blocks", arguments.tower]
        subprocess.run(command, check=True)
    return files


def rounds(files: dict[str, Path], arguments: argparse.Namespace) -> dict[str, list[Figures]]:
    """What each engine did in each round."""
    pythons = {OURS: sys.executable, THEIRS: arguments.llama_python}
    found: dict[str, list[Figures]] = {engine: [] for engine in files}
    tokens: dict[str, list[int]] = {}
    for i in range(arguments.rounds):
        for engine in list(files) if i % 2 == 0 else list(files)[::-1]:
            result = run_worker(pythons[engine], engine, files[engine], arguments)
            if i == 0:
                check_build(engine, result["about"])
            if "tokens" in result:
                tokens[engine] = result["tokens"]
                check_tokens(tokens)
                if i == 0:
                    print(f"{engine} reads {tokens[engine]} tokens: text, image, text", file=sys.stderr)
            found[engine].append(result["figures"])
            print(f"round {i + 1} of {arguments.rounds}: {engine}", file=sys.stderr)
    return found


def check_build(engine: str, about: str) -> None:
    """Say what is measured, and refuse a llama.cpp that was compiled for less than this processor."""
    print(about, file=sys.stderr)
    missing = missing_features(about, processor_flags()) if engine == THEIRS else []
    if missing:
        raise SystemExit(
            f"this build of llama.cpp does without {', '.join(missing)}, which the processor has"
        )


def check_tokens(tokens: dict[str, list[int]]) -> None:
    """Refuse to compare engines that read other numbers of tokens of text, image and text."""
    if len({tuple(counts) for counts in tokens.values()}) > 1:
        raise SystemExit(f"the engines read different prompts: {tokens}")


def summary(found: dict[str, list[Figures]]) -> list[dict[str, Any]]:
    """A row for each figure: medians, and how many times as good edgewise is (above 1 is better)."""
    rows = []
    for name in found[OURS][0]:
        row: dict[str, Any] = {"what": name}
        for engine, figures in found.items():
            row[engine] = statistics.median(each[name] for each in figures)
        if THEIRS in found:
            ratios = [ours[name] / theirs[name] for ours, theirs in zip(*found.values(), strict=True)]
            is_speed = name.endswith("_per_s")
            row["edgewise_is_better_by"] = statistics.median(r if is_speed else 1 / r for r in ratios)
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line) for line in padded)


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_csv(path: Path, rows: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Write a record: comments on where it comes from, then a line for each figure."""
    shape = {
        "shapes": Path(arguments.shapes).name,
        "layers": arguments.layers or "all",
        "threads": arguments.threads,
    }
    if arguments.image is not None:
        shape |= {"image": arguments.image, "tower": arguments.tower}
    with path.open("w", newline="") as file:
        file.write(provenance.comment(arguments.load))
        writer = csv.DictWriter(file, [*shape, *rows[0]], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({**shape, **{key: _cell(value) for key, value in row.items()}})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="0.8B", help="a size of the family, or the path of a config.json")
    parser.add_argument("--layers", type=int, metavar="N", help="the first N layers only")
    parser.add_argument("--llama-python", default=sys.executable, help="the Python that has llama-cpp-python")
    parser.add_argument("--only", choices=[OURS], help="measure without llama.cpp")
    parser.add_argument("--threads", type=int, default=_native.available_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument(
        "--long", action="store_true", help="also a prompt of 8192 tokens, and writing after it"
    )
    parser.add_argument("--image", metavar="WxH", help="in place of text: from an image to the first token")
    parser.add_argument(
        "--tower", choices=["F16", "Q8_0"], default="F16", help="matrices of llama.cpp's vision tower (F16)"
    )
    parser.add_argument("--json", action="store_true", help="print every round's figures as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a record")
    arguments = parser.parse_args()
    if arguments.image is not None and re.fullmatch(r"[1-9]\d*x[1-9]\d*", arguments.image, re.ASCII) is None:
        parser.error(f"--image: expected WIDTHxHEIGHT such as 640x480, got {arguments.image!r}")
    arguments.load = os.getloadavg()[0]
    if arguments.only is None:
        check_llama(arguments.llama_python)
    with tempfile.TemporaryDirectory(prefix="edgewise-compare-") as folder:
        found = rounds(write_files(Path(folder), arguments), arguments)
    rows = summary(found)
    print(json.dumps({"rounds": found, "summary": rows}, indent=1) if arguments.json else table(rows))
    if arguments.csv is not None:
        write_csv(arguments.csv, rows, arguments)


if __name__ == "__main__":
    main()
