"""One engine, one round, in a process of its own: `compare.py` starts it and reads the JSON that it prints.

    python benches/compare_worker.py edgewise|llama.cpp FILE --threads N [--long]

Both engines do the same: open the file and give the first token after 16 tokens; read 512 tokens up to the
next token; write 64 tokens, with one and with 8192 in the context.
Greedy choice, 16 bits a number in the KV cache.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Protocol

FIRST, PROMPT, LONG = 16, 512, 8192
"""Tokens of the prompt after opening, and of the usual and the long one."""


class Engine(Protocol):
    """One sequence on an open model."""

    vocabulary: int

    def clear(self) -> None:
        """Forget all tokens."""

    def append(self, ids: list[int]) -> None:
        """Read tokens behind those that were read."""

    def choose(self) -> int:
        """The likeliest next token."""

    def settle(self) -> None:
        """Be as a process that has written for a while."""


class Edgewise:
    """edgewise, by the extension module that its Python package is built on."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        from edgewise import _native

        del context  # The cache grows as it is used.
        self._engine = _native.Engine.open(path, threads=threads)
        self.vocabulary = self._engine.vocab_size
        self._sampler = _native.Sampler(self.vocabulary, temperature=0.0)
        self.clear()

    @staticmethod
    def load() -> str:
        import edgewise

        return f"edgewise {edgewise.__version__}, tier {edgewise._native.active_tier()}"

    def clear(self) -> None:
        self._sequence = self._engine.sequence()

    def append(self, ids: list[int]) -> None:
        self._sequence.append(ids)

    def choose(self) -> int:
        return int(self._sampler.sample(self._sequence)[0])

    def settle(self) -> None:
        self._engine.settle()


class LlamaCpp:
    """llama.cpp, by the C interface that llama-cpp-python brings.

    All is left at its default but for the number of outputs: a row of logits is wanted after the last token
    only, and room for more would take memory.
    """

    def __init__(self, path: str, threads: int, context: int) -> None:
        import llama_cpp

        self._llama = llama_cpp
        self._model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        params.n_threads = params.n_threads_batch = threads
        params.n_outputs_max = 1
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._batch = params.n_batch
        self._greedy = llama_cpp.llama_sampler_init_greedy()
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    @staticmethod
    def load() -> str:
        import llama_cpp

        LlamaCpp._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(LlamaCpp._quiet, None)
        llama_cpp.llama_backend_init()
        return f"llama-cpp-python {llama_cpp.__version__}, {llama_cpp.llama_print_system_info().decode()}"

    def clear(self) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)

    def append(self, ids: list[int]) -> None:
        for start in range(0, len(ids), self._batch):
            piece = ids[start : start + self._batch]
            tokens = (self._llama.llama_token * len(piece))(*piece)
            batch = self._llama.llama_batch_get_one(tokens, len(piece))
            status = self._llama.llama_decode(self._context, batch)
            if status != 0:
                raise SystemExit(f"llama_decode failed with {status}")

    def choose(self) -> int:
        return int(self._llama.llama_sampler_sample(self._greedy, self._context, -1))

    def settle(self) -> None:
        pass


ENGINES = {"edgewise": Edgewise, "llama.cpp": LlamaCpp}


def text(engine: Engine, length: int) -> list[int]:
    return [(7919 * i + 11) % engine.vocabulary for i in range(length)]


def read(engine: Engine, length: int) -> float:
    """Tokens per second of reading a prompt up to the choice of the next token."""
    engine.clear()
    start = time.perf_counter()
    engine.append(text(engine, length))
    engine.choose()
    return length / (time.perf_counter() - start)


def write(engine: Engine, tokens: int) -> float:
    """Tokens per second of writing behind what was read."""
    engine.append([engine.choose()])
    start = time.perf_counter()
    for _ in range(tokens):
        engine.append([engine.choose()])
    return tokens / (time.perf_counter() - start)


def peak_memory() -> int:
    """The most bytes this process held at once."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the system does not tell the peak of memory")


def measure(name: str, path: str, threads: int, new_tokens: int, long: bool) -> dict[str, object]:
    kind = ENGINES[name]
    about = kind.load()
    context = (LONG if long else PROMPT) + new_tokens + FIRST
    start = time.perf_counter()
    engine = kind(path, threads, context)
    opened = time.perf_counter()
    engine.append(text(engine, FIRST))
    engine.choose()
    first = time.perf_counter()
    figures = {"open_ms": 1e3 * (opened - start), "open_to_first_token_ms": 1e3 * (first - start)}
    engine.settle()
    figures["prefill_512_tokens_per_s"] = read(engine, PROMPT)
    engine.clear()
    engine.append(text(engine, 1))
    figures["decode_at_0_tokens_per_s"] = write(engine, new_tokens)
    if long:
        figures["prefill_8192_tokens_per_s"] = read(engine, LONG)
        figures["decode_at_8192_tokens_per_s"] = write(engine, new_tokens)
    figures["peak_memory_mb"] = peak_memory() / 1e6
    return {"about": about, "figures": figures}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--long", action="store_true", help=f"also a prompt of {LONG} tokens")
    arguments = parser.parse_args()
    found = measure(arguments.engine, arguments.file, arguments.threads, arguments.new_tokens, arguments.long)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
