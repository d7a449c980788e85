"""Memory of a process over many requests, beside what its cache of states may hold.

    python benches/cache_memory.py                      # 1,000 requests, a cache of 64 MiB, two minutes
    python benches/cache_memory.py --requests 100 --cache-mib 8
    python benches/cache_memory.py --csv                # rows for benches/record

The demo model reads conversations of random lengths, of which many begin like earlier ones, and writes short
answers. `resident_bytes` is what the process takes beyond what it took when the cache was empty, after ten
requests without a cache: it should reach the size of the cache and stay there. After each request the cache
must count no more than it may hold, or the script fails.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from arguments import positive
from edgewise import Model

WORDS = ["apples", "books", "cards", "coins", "keys", "pears", "shells", "stamps"]
STATM = Path("/proc/self/statm")


def resident() -> int:
    """Return bytes of memory that this process takes now."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def prompts(seed: int) -> Iterator[list[dict[str, Any]]]:
    """Yield conversations: each goes on from one of sixteen, or begins anew in its place."""
    rng = Random(seed)
    talks: list[list[dict[str, Any]]] = [[] for _ in range(16)]
    while True:
        index = rng.randrange(len(talks))
        if len(talks[index]) > 12:
            talks[index] = []
        words = " ".join(rng.choices(WORDS, k=rng.randint(1, 120)))
        talks[index].append({"role": "user", "content": f"Repeat: {words}"})
        yield list(talks[index])
        talks[index].append({"role": "assistant", "content": words})


def measure(requests: int, cache_bytes: int, steps: int) -> list[list[str]]:
    """Return a header, and a row at each of `steps` equal steps."""
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0}
    empty, full = (Model.from_pretrained("demo", cache_bytes=limit) for limit in (0, cache_bytes))
    for _, prompt in zip(range(10), prompts(1), strict=False):
        empty.generate(prompt, **options)
    before = resident()
    rows = [["requests", "tokens", "cached_tokens", "cache_limit", "cache_bytes", "resident_bytes"]]
    tokens = cached = 0
    for done, prompt in zip(range(1, requests + 1), prompts(0), strict=False):
        usage = full.generate(prompt, **options).usage
        tokens, cached = tokens + usage.prompt_tokens, cached + usage.cached_tokens
        if full.cached_bytes > cache_bytes:
            raise SystemExit(
                f"after {done} requests the cache holds {full.cached_bytes} of {cache_bytes} bytes"
            )
        if done % max(requests // steps, 1) == 0:
            figures = (done, tokens, cached, cache_bytes, full.cached_bytes, resident() - before)
            rows.append([str(figure) for figure in figures])
            print(f"{done} requests", file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--requests", type=positive, default=1000, metavar="N", help="how many (1000)")
    parser.add_argument("--cache-mib", type=positive, default=64, metavar="N", help="size of the cache (64)")
    parser.add_argument("--steps", type=positive, default=10, metavar="N", help="rows that are printed (10)")
    parser.add_argument("--csv", action="store_true", help="print comma-separated values")
    options = parser.parse_args()
    if not STATM.exists():
        raise SystemExit(f"there is no {STATM}, so nothing tells how much memory this process takes")

    rows = measure(options.requests, options.cache_mib << 20, options.steps)
    if options.csv:
        print("\n".join(",".join(row) for row in rows))
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
