"""What 4 bits lose, with levels chosen by a text and without, on texts that did not choose them.

    python benches/calibration_texts.py texts           # writes python.txt, questions-1.txt and so on
    python benches/calibration.py MODEL --calibrate texts/python.txt --judge texts/dialogues.txt
    python benches/calibration.py MODEL --calibrate A --judge B C --csv    # rows for benches/record

MODEL is a folder, a GGUF file or `demo`; nothing is downloaded. Everything is compared with its numbers in
f32. What a GGUF file's own blocks have lost is no part of the figures, and blocks that fit a format (Q4_1 is
`int4_asym`) keep their levels there: such rows tell of the other tensors. Each text of `--judge` is read from
its beginning, in windows of 512 tokens; perplexities of one text compare.

All but small tensors are stored in the format named, the embedding too. Calibration chooses levels of 4 bits.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

import provenance
from arguments import positive
from edgewise import Model, _native
from edgewise.benchmark.perplexity import WINDOW, Score, measure

FORMATS = {"int4_s8": True, "int4": True, "int4_asym": True, "int8": False}
"""Of what is measured, and whether its levels are calibrated."""
ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "tests" / "int4_asym.json"
"""The built-in recipe `int4` with another last rule."""
DEMO = ROOT / "tools" / "demo" / "checkpoint"
HEADER = ["format", "levels", "file_bytes", "text", "tokens", "perplexity", "divergence", "same_token"]


class Remembered:
    """A model as `measure` uses a reference, that computes each window once."""

    def __init__(self, model: Model) -> None:
        self.model, self.vocab_size, self.context_length = model, model.vocab_size, model.context_length
        self.known: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        key = tuple(ids)
        if key not in self.known:
            self.known[key] = self.model.logits(ids)
        return self.known[key]


@dataclass(frozen=True)
class Text:
    """A text by which models are judged."""

    name: str
    ids: list[int]


def recipe(format_name: str, folder: Path) -> str:
    """Write the recipe that stores matrices in one format, and return its path."""
    *rules, _ = json.loads(RECIPE.read_text())["rules"]
    path = folder / f"{format_name}.json"
    path.write_text(json.dumps({"name": format_name, "rules": [*rules, ["*", format_name]]}))
    return str(path)


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield one row for each format, choice of levels and text; the model itself comes first."""
    source = str(DEMO if options.model == "demo" else options.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "quantised.safetensors"
        exact = Model.from_pretrained(source, "f32", options.threads)
        encode = exact.tokenizer.encode
        texts = [Text(path.stem, encode(path.read_text())[: options.judge_tokens]) for path in options.judge]
        ids = encode(options.calibrate.read_text())[: options.tokens]
        print(f"calibrating on {len(ids)} tokens of {options.calibrate.name}", file=sys.stderr)
        statistics = exact.input_statistics(ids, min(WINDOW, exact.context_length))
        reference = cast(Model, Remembered(exact))
        yield from judged(cast(Model, reference), reference, texts, ["f32", "exact", ""])
        for format_name, calibrates in FORMATS.items():
            for levels in ["plain", "calibrated"] if calibrates else ["plain"]:
                chosen = statistics if levels == "calibrated" else None
                arguments = (source, str(file), recipe(format_name, folder), options.threads)
                _native.quantize(*arguments, statistics=chosen)
                model = Model.from_pretrained(file, threads=options.threads)
                yield from judged(model, reference, texts, [format_name, levels, str(file.stat().st_size)])
                del model


def judged(model: Model, reference: Model, texts: list[Text], names: list[str]) -> Iterator[list[str]]:
    for text in texts:
        score: Score = measure(model, text.ids, WINDOW, reference)
        figures = [f"{score.perplexity:.4f}", f"{score.divergence:.5f}", f"{score.agreement:.4f}"]
        yield [*names, text.name, str(len(text.ids)), *figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="folder, file or demo")
    parser.add_argument("--calibrate", type=Path, required=True, metavar="TEXT", help="plain text, UTF-8")
    parser.add_argument("--judge", type=Path, nargs="+", required=True, metavar="TEXT", help="other texts")
    parser.add_argument("--tokens", type=positive, default=8192, metavar="N", help="to calibrate on (8192)")
    parser.add_argument(
        "--judge-tokens", type=positive, default=4096, metavar="N", help="of each text (4096)"
    )
    parser.add_argument("--threads", type=positive, metavar="N")
    parser.add_argument("--csv", action="store_true", help="print comma-separated values")
    options = parser.parse_args()
    if options.calibrate.resolve() in [path.resolve() for path in options.judge]:
        parser.error("--judge: must be other texts than that of --calibrate")
    load = os.getloadavg()[0]
    if options.csv:
        table = [HEADER, *rows(options)]
        print(provenance.comment(load), end="")
        print("\n".join(",".join(row) for row in table))
        return
    print(line(HEADER))
    for row in rows(options):
        print(line(row), flush=True)


def line(row: list[str]) -> str:
    return "  ".join(f"{cell:>12}" for cell in row)


if __name__ == "__main__":
    main()
