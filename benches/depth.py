"""What writing one token costs after texts of different lengths: time, and memory of the text's state.

    python benches/depth.py                     # 1,024 to 262,144 tokens, two minutes
    python benches/depth.py --depths 1024 8192  # others
    python benches/depth.py --kv-dtype int8     # with another KV cache
    python benches/depth.py --cpu-time          # on a machine that others use
    python benches/depth.py --csv               # rows for benches/record

Two small models of random weights are measured: `delta` has four layers of the gated delta rule, `hybrid`
three of them and one of attention, the ratio of the family. Their delta heads have the true size of 128 x
128. A layer of the delta rule keeps a state of constant size and reads nothing else of the past; attention
reads all of it. So a token costs `delta` the same at any depth, and `hybrid` more the deeper it is.

Each text is read once, and goes on from depth to depth. Then both models write after forks of all depths in
turn, round after round in a random order, so that whatever else the machine does meets all of them alike. A
round notes the median time of its tokens; printed is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from arguments import positive
from edgewise import _native

DEPTHS = tuple(1024 << i for i in range(9))
LAYERS = {
    "delta": ["linear_attention"] * 4,
    "hybrid": [*["linear_attention"] * 3, "full_attention"],
}
VOCABULARY = 1024
Clock = Callable[[], float]
"""Tells seconds."""


@dataclass
class Text:
    """A text of one model, read up to one depth, and what was measured after it."""

    model: str
    engine: _native.Engine
    sequence: _native.Sequence
    seconds: list[float] = field(default_factory=list)
    """Of one token, the median of each round."""

    @property
    def depth(self) -> int:
        return len(self.sequence)

    @property
    def state_bytes(self) -> int:
        return self.sequence.nbytes

    @property
    def microseconds(self) -> float:
        return 1e6 * statistics.median(self.seconds)

    def write(self, tokens: int, clock: Clock) -> None:
        """Write `tokens` tokens behind a fork and note their median time."""
        fork = self.sequence.fork()
        fork.reserve(self.depth + tokens + 1)
        sampler = _native.Sampler(VOCABULARY, temperature=0.0)
        times = []
        for _ in range(tokens + 1):
            start = clock()
            fork.append([sampler.sample(fork)[0]])
            times.append(clock() - start)
        # The first token finds caches full of other things, and copies the last page of the KV cache.
        self.seconds.append(statistics.median(times[1:]))


def config(layers: Sequence[str], context: int) -> str:
    """Return the `config.json` of a small model."""
    return json.dumps(
        {
            "model_type": "qwen3_5_text",
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": len(layers),
            "layer_types": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": context,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000_000,
                "partial_rotary_factor": 0.25,
            },
            "tie_word_embeddings": True,
        }
    )


def read(model: str, engine: _native.Engine, depths: Sequence[int]) -> list[Text]:
    """Read one text and keep a fork of it at each depth."""
    texts, sequence = [], engine.sequence()
    for depth in depths:
        sequence.append([(7919 * i + 11) % VOCABULARY for i in range(len(sequence), depth)])
        texts.append(Text(model, engine, sequence.fork()))
        print(f"{model}: {depth} tokens are read", file=sys.stderr)
    return texts


def measure(
    depths: Sequence[int],
    rounds: int,
    tokens: int,
    threads: int | None,
    kv_dtype: str,
    clock: Clock = time.perf_counter,
) -> list[Text]:
    """Measure both models after each of `depths` tokens, in ascending order."""
    texts = []
    with tempfile.TemporaryDirectory(prefix="edgewise-depth-") as folder:
        for model, layers in LAYERS.items():
            path = str(Path(folder) / f"{model}.safetensors")
            _native.write_random(config(layers, depths[-1] + tokens + 1), path, "int4")
            texts += read(model, _native.Engine.open(path, kv_dtype=kv_dtype, threads=threads), depths)
        order = Random(0)
        for _ in range(rounds):
            # What writes next to a long KV cache finds its own data gone from the processor's caches.
            for text in order.sample(texts, len(texts)):
                text.write(tokens, clock)
    return texts


def rows(texts: Sequence[Text]) -> list[list[str]]:
    """Return a header and a row for each text; `times` compares with the shallowest of the same model."""
    first = {text.model: text for text in reversed(texts)}
    table = [["layers", "depth", "us_per_token", "times", "state_bytes", "kv_dtype"]]
    for text in texts:
        times = text.microseconds / first[text.model].microseconds
        figures = [f"{text.microseconds:.1f}", f"{times:.3f}", str(text.state_bytes)]
        table.append([text.model, str(text.depth), *figures, text.engine.info()["kv_dtype"]])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--depths", type=positive, nargs="+", default=DEPTHS, metavar="N", help="tokens read before"
    )
    parser.add_argument(
        "--rounds", type=positive, default=16, metavar="N", help="measurements at each depth (16)"
    )
    parser.add_argument("--tokens", type=positive, default=128, metavar="N", help="written in each (128)")
    parser.add_argument(
        "--kv-dtype", choices=["f32", "bf16", "f16", "int8"], default="bf16", help="of the KV cache (bf16)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="how many to compute with")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, and only the time in which it had a CPU: for a machine that others use too",
    )
    parser.add_argument("--csv", action="store_true", help="print comma-separated values")
    options = parser.parse_args()

    depths = sorted(set(options.depths))
    threads, clock = (1, time.thread_time) if options.cpu_time else (options.threads, time.perf_counter)
    texts = measure(depths, options.rounds, options.tokens, threads, options.kv_dtype, clock)
    table = rows(texts)
    if options.csv:
        print("\n".join(",".join(row) for row in table))
        return
    info = texts[0].engine.info()
    print(f"{info['tier']}, {info['threads']} threads")
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
