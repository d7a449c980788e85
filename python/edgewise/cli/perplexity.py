"""`edgewise perplexity`: how well a model predicts a text, alone or beside another model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.benchmark.perplexity import WINDOW, Score, measure
from edgewise.cli.arguments import add_opening, open_model
from edgewise.model import Model
from edgewise.progress import count, shown

if TYPE_CHECKING:
    from edgewise.cli.arguments import Commands


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser(
        "perplexity",
        help="measure how well a model predicts a text",
        description="Reads a text in windows and scores how well each next token is predicted. Numbers of "
        "the same text and window compare; lower is better.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder, file, hub id or demo")
    parser.add_argument("text", metavar="TEXT", help="file of plain text, UTF-8")
    parser.add_argument(
        "--window", type=int, default=WINDOW, metavar="N", help=f"tokens read together ({WINDOW})"
    )
    parser.add_argument("--tokens", type=int, metavar="N", help="read only so many tokens of the text")
    parser.add_argument(
        "--reference", metavar="MODEL2", help="compare with this model, such as the original, in f32"
    )
    add_opening(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    text = Path(arguments.text).read_text(encoding="utf-8")
    model = open_model(arguments)
    reference = None
    if arguments.reference is not None:
        reference = Model.from_pretrained(arguments.reference, "f32", arguments.threads, progress=True)
    ids = model.tokenizer.encode(text)[: arguments.tokens]
    with shown(True, "reading", count("tokens"), delay=0.5) as progress:
        report = None if progress is None else lambda done, total: progress(done, total, "")
        score = measure(model, ids, arguments.window, reference, report)
    print(_text(score))
    return 0


def _text(score: Score) -> str:
    rows = [
        ["perplexity", f"{score.perplexity:.4f}"],
        ["loss", f"{score.loss:.5f} nats a token"],
        ["tokens", f"{score.tokens} predicted"],
    ]
    if score.divergence is not None and score.agreement is not None:
        rows.append(["divergence", f"{score.divergence:.6f} nats a token from the reference"])
        rows.append(["same token", f"{score.agreement:.2%} of places"])
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)
