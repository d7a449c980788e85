"""One engine, one round, an image: `compare.py --image` starts it and reads the JSON that it prints.

    python benches/compare_image_worker.py edgewise FILE --image 640x480 --threads N
    python benches/compare_image_worker.py llama.cpp FILE --tower FILE --words FILE --image 640x480 ...

Both engines do the same: open text model and tower; then, from pixels in memory, resize, encode, read the
image between 5 and 17 tokens of text, and choose the first token; then the same with another image. Greedy
choice, KV cache of 16 bits a number.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import time
from typing import Protocol

from compare_worker import Edgewise, LlamaCpp, peak_memory

BEFORE, AFTER = 5, 17
"""Tokens of text around the image, those that mark its begin and end among them."""
CONTEXT = 512
"""Tokens for text beside those of the image, for which llama.cpp has memory."""


class Seer(Protocol):
    """A model that sees, and one sequence on it."""

    def see(self, pixels: bytes, width: int, height: int) -> list[int]:
        """Read text, an image `[height, width, 3]` and text; their tokens."""

    def clear(self) -> None:
        """Forget all tokens."""

    def choose(self) -> int:
        """The likeliest next token."""


class EdgewiseSeer(Edgewise):
    """edgewise, from pixels to features as its Python package prepares them."""

    def __init__(self, path: str, threads: int, context: int, files: argparse.Namespace) -> None:
        super().__init__(path, threads, context)
        del files  # The tower is in the same file.
        self._settings = self._media.ImageSettings.read(self._engine.side_file)
        self._vision = self._engine.vision

    @classmethod
    def load(cls) -> str:
        import numpy

        from edgewise import media

        cls._numpy, cls._media = numpy, media
        return Edgewise.load()

    def see(self, pixels: bytes, width: int, height: int) -> list[int]:
        image = self._numpy.frombuffer(pixels, "uint8").reshape(height, width, 3)
        [group] = self._media.prepare_image(image, self._settings).groups()
        features = self._engine.encode(group.pixel_values(), group.grid_hw)
        words = [(7919 * i + 11) % self.vocabulary for i in range(BEFORE + AFTER - 2)]
        ids = [*words[: BEFORE - 1], self._vision["vision_start_token_id"]]
        ids += [self._vision["image_token_id"]] * features.tokens
        ids += [self._vision["vision_end_token_id"], *words[BEFORE - 1 :]]
        self._sequence.append(ids, [(BEFORE, features)])
        return [BEFORE, features.tokens, len(ids) - BEFORE - features.tokens]


class LlamaCppSeer(LlamaCpp):
    """llama.cpp, by its library `mtmd`. All but the threads and the GPU is left at its default."""

    def __init__(self, path: str, threads: int, context: int, files: argparse.Namespace) -> None:
        super().__init__(path, threads, context)
        params = self._llama.llama_model_default_params()
        params.vocab_only = True
        self._words = self._llama.llama_model_load_from_file(files.words.encode(), params)
        params = self._mtmd.mtmd_context_params_default()
        params.use_gpu = params.print_timings = False
        params.n_threads = threads
        self._tower = self._mtmd.mtmd_init_from_file(files.tower.encode(), self._words, params)
        if not self._words or not self._tower:
            raise SystemExit(f"llama.cpp cannot load {files.tower} or {files.words}")

    @classmethod
    def load(cls) -> str:
        from llama_cpp import mtmd_cpp

        about = LlamaCpp.load()
        cls._mtmd = mtmd_cpp
        mtmd_cpp.mtmd_log_set(LlamaCpp._quiet, None)
        mtmd_cpp.mtmd_helper_log_set(LlamaCpp._quiet, None)
        return about

    def see(self, pixels: bytes, width: int, height: int) -> list[int]:
        mtmd = self._mtmd
        data = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
        bitmap = mtmd.mtmd_bitmap_init(width, height, data)
        chunks = mtmd.mtmd_input_chunks_init()
        # Five letters are a token: 4 mark the image's begin, 3 its end.
        text = b"a" * 5 * (BEFORE - 4) + mtmd.mtmd_default_marker() + b"b" * 5 * (AFTER - 3)
        wanted = mtmd.mtmd_input_text(text, len(text), False, True)
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        status = mtmd.mtmd_tokenize(self._tower, chunks, ctypes.byref(wanted), bitmaps, 1)
        if status != 0:
            raise SystemExit(f"mtmd_tokenize failed with {status}")
        past = self._llama.llama_pos()
        status = mtmd.mtmd_helper_eval_chunks(
            self._tower, self._context, chunks, 0, 0, self._batch, True, ctypes.byref(past)
        )
        if status != 0:
            raise SystemExit(f"mtmd_helper_eval_chunks failed with {status}")
        pieces = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
        tokens = [mtmd.mtmd_input_chunk_get_n_tokens(piece) for piece in pieces]
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return tokens


SEERS = {"edgewise": EdgewiseSeer, "llama.cpp": LlamaCppSeer}


def look(seer: Seer, pixels: bytes, width: int, height: int) -> tuple[list[int], float]:
    """Tokens of text, image and text, and the seconds from pixels to the next token."""
    seer.clear()
    start = time.perf_counter()
    tokens = seer.see(pixels, width, height)
    seer.choose()
    return tokens, time.perf_counter() - start


def measure(name: str, arguments: argparse.Namespace) -> dict[str, object]:
    kind = SEERS[name]
    about = kind.load()
    width, height = (int(side) for side in arguments.image.split("x"))
    noise = random.Random(0)
    images = [noise.randbytes(3 * width * height) for _ in range(2)]
    context = CONTEXT + width * height // 32**2
    start = time.perf_counter()
    seer = kind(arguments.file, arguments.threads, context, arguments)
    opened = time.perf_counter() - start
    tokens, first = look(seer, images[0], width, height)
    _, later = look(seer, images[1], width, height)
    figures = {
        "open_with_tower_ms": 1e3 * opened,
        "image_to_first_token_ms": 1e3 * first,
        "open_to_first_token_with_image_ms": 1e3 * (opened + first),
        "later_image_to_first_token_ms": 1e3 * later,
        "peak_memory_with_image_mb": peak_memory() / 1e6,
    }
    return {"about": about, "tokens": tokens, "figures": figures}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=SEERS)
    parser.add_argument("file")
    parser.add_argument("--tower", help="for llama.cpp")
    parser.add_argument("--words", help="a vocabulary for llama.cpp")
    parser.add_argument("--image", required=True, metavar="WxH")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.engine, arguments)))


if __name__ == "__main__":
    main()
