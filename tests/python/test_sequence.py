"""A text that grows, forks, is cut back and saved: always the bits of reading it at once."""

from __future__ import annotations

import itertools
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import golden
from edgewise import ContextError, Model, Prompt, Sequence
from edgewise.checkpoints import EVERY

CASES = {
    "f32": ("dense_text", "f32", "auto"),
    "int4 and int8 cache": ("dense_text", "int4", "int8"),
    "experts": ("moe_text", "int8", "auto"),
    "attention alone": ("qwen3", "int4", "f16"),
    "without norms of queries and keys": ("llama", "int4", "f16"),
}
CACHES = {"no cache": 0, "a small cache": 400_000, "a large cache": 1 << 28}


@cache
def model(case: str, cache_bytes: int = 1 << 28) -> Model:
    name, dtype, kv_dtype = CASES[case]
    path = golden.FOLDER / name
    return Model.from_pretrained(path, dtype=dtype, threads=2, kv_dtype=kv_dtype, cache_bytes=cache_bytes)  # type: ignore[arg-type]


@cache
def seeing() -> Model:
    return Model.from_pretrained(golden.FOLDER / "image", dtype="f32", threads=2, cache_bytes=1 << 28)


def text(seed: int, tokens: int, vocab_size: int = 500) -> list[int]:
    """Ids that begin in one of a few ways, so that texts have beginnings in common."""
    return [(i * i * 31 + i * 7919 + seed % 3 + (seed if i > 40 else 0)) % vocab_size for i in range(tokens)]


def fresh_logits(model: Model, ids: list[int]) -> Any:
    """Of the same tokens read at once, without cache."""
    native = model._engine.sequence()
    native.append(ids)
    return native.logits()


STEP = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 8), st.integers(1, 120)),
    st.tuples(st.just("generate"), st.integers(0, 3), st.integers(1, 8)),
    st.tuples(st.just("rewind"), st.integers(0, 100), st.just(0)),
    st.tuples(st.just("fork"), st.just(0), st.just(0)),
    st.tuples(st.just("switch"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("save"), st.just(0), st.just(0)),
    st.tuples(st.just("new"), st.just(0), st.just(0)),
)


class Script:
    """Runs steps on sequences and on plain lists of ids."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.pairs: list[tuple[Sequence, list[int]]] = [(model.sequence(), [])]

    def run(self, name: str, first: int, second: int) -> None:
        sequence, ids = self.pairs[-1]
        if name == "append":
            more = text(first, second, self.model.vocab_size)
            sequence.append(more)
            ids += more
        elif name == "generate" and ids:
            result = sequence.generate(max_new_tokens=second, temperature=0.9, seed=first, ignore_eos=True)
            assert result.usage.cached_tokens == result.usage.prompt_tokens == len(ids)
            assert result.token_ids == self.expected(ids, first, second)
            ids += result.token_ids
        elif name == "rewind":
            kept = len(ids) * first // 100
            sequence.rewind(kept)
            del ids[kept:]
        elif name == "fork":
            self.pairs.append((sequence.fork(), ids.copy()))
        elif name == "switch":
            self.pairs.append(self.pairs.pop(first % len(self.pairs)))
        elif name == "save":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "text.safetensors"
                sequence.save(path)
                self.pairs[-1] = (self.model.load_sequence(path), ids)
        elif name == "new":
            self.pairs.append((self.model.sequence(), []))

    def expected(self, ids: list[int], seed: int, tokens: int) -> list[int]:
        """What `Model.generate` makes of the same text, from a cache or not."""
        return self.model.generate(
            ids, max_new_tokens=tokens, temperature=0.9, seed=seed, ignore_eos=True
        ).token_ids

    def check(self) -> None:
        for sequence, ids in self.pairs:
            assert sequence.token_ids == ids
            assert len(sequence) == sequence.next_position == len(ids)
            if ids:
                np.testing.assert_array_equal(sequence.logits(), fresh_logits(self.model, ids))


@pytest.mark.parametrize("cache_bytes", CACHES.values(), ids=CACHES.keys())
@pytest.mark.parametrize("case", CASES)
@settings(max_examples=25)
@given(steps=st.lists(STEP, min_size=1, max_size=12))
def test_any_script_gives_the_bits_of_a_fresh_run(
    case: str, cache_bytes: int, steps: list[tuple[str, int, int]]
) -> None:
    script = Script(model(case, cache_bytes))
    for step in steps:
        script.run(*step)
    script.check()
    assert script.model.cached_bytes <= cache_bytes


class TestPictures:
    def prompt(self) -> Prompt:
        noise = np.random.default_rng(5)
        pictures = [noise.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(2)]
        parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
        content = [parts[0], {"type": "text", "text": "one"}, parts[1], {"type": "text", "text": "two"}]
        return seeing().prepare([{"role": "user", "content": content}])

    def fresh(self, prompt: Prompt, tokens: int) -> Any:
        media = [(start, found) for start, found in seeing()._encoder.encode(prompt) if start < tokens]
        native = seeing()._engine.sequence()
        native.append(prompt.token_ids[:tokens], media)
        return native

    @pytest.mark.parametrize("clear", [False, True], ids=["from checkpoints", "all anew"])
    @pytest.mark.parametrize("load", [False, True], ids=["", "loaded"])
    def test_any_cut_outside_of_them(self, tmp_path: Path, clear: bool, load: bool) -> None:
        prompt = self.prompt()
        origin = seeing().sequence()
        origin.append([5, 6, 7])
        origin.append(prompt)
        if load:
            origin.save(tmp_path / "text")
            origin = seeing().load_sequence(tmp_path / "text")
        origin.rewind(len(origin))
        whole = Prompt([5, 6, 7, *prompt.token_ids], ())
        spans = [(start + 3, start + 3 + count) for medium in prompt.media for start, count in medium.spans]
        for tokens in range(len(whole)):
            if clear:
                seeing().clear_cache()
            sequence = origin.fork()
            inside = [span for span in spans if span[0] < tokens < span[1]]
            if inside:
                with pytest.raises(ValueError, match=r"^n_tokens: \d+ is inside (images|messages|media)"):
                    sequence.rewind(tokens)
                assert len(sequence) == len(whole)
                continue
            sequence.rewind(tokens)
            assert sequence.token_ids == whole.token_ids[:tokens]
            if tokens > 3:
                wanted = seeing()._engine.sequence()
                wanted.append([5, 6, 7])
                media = [
                    (start, found) for start, found in seeing()._encoder.encode(prompt) if start + 3 < tokens
                ]
                wanted.append(prompt.token_ids[: tokens - 3], media)
                np.testing.assert_array_equal(sequence.logits(), wanted.logits())
                assert sequence.next_position == wanted.next_position

    def test_the_same_place_with_another_picture_is_another_text(self) -> None:
        first, second = (
            seeing().prepare("What?", images=Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue")
        )
        assert first.token_ids == second.token_ids
        for prompt in (first, second, first, second):
            sequence = seeing().sequence()
            sequence.append(prompt)
            wanted = self.fresh(prompt, len(prompt)).logits()
            np.testing.assert_array_equal(sequence.logits(), wanted)


class TestMessages:
    def test_a_conversation_is_that_of_the_template(self) -> None:
        demo = Model.from_pretrained("demo", cache_bytes=0)
        sequence = demo.sequence()
        talk: list[dict[str, Any]] = []
        for word in ("coins", "apples", "stones"):
            message = {"role": "user", "content": f"Repeat: {word}"}
            sequence.append([message], enable_thinking=False)
            answer = sequence.generate(temperature=0)
            assert answer.text
            assert answer.stop == sequence.token_ids[-1]
            talk += [message, {"role": "assistant", "content": answer.text}]
        text = demo.tokenizer.decode(sequence.token_ids)
        thought = "<think>\n\n</think>\n\n"
        rendered = demo.render(talk, add_generation_prompt=False)
        assert text.replace(thought, "") + "\n" == rendered.replace(thought, "")

    def test_an_answer_cut_short_is_ended(self) -> None:
        demo = Model.from_pretrained("demo", cache_bytes=0)
        sequence = demo.sequence()
        sequence.append([{"role": "user", "content": "Repeat: coins apples"}], enable_thinking=False)
        cut = sequence.generate(temperature=0, max_new_tokens=1).text
        sequence.append([{"role": "user", "content": "Go on."}], add_generation_prompt=False)
        text = demo.tokenizer.decode(sequence.token_ids)
        assert text.endswith(f"{cut}<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>\n")
        before = len(sequence)
        sequence.append([{"role": "user", "content": "x"}], add_generation_prompt=False)
        assert demo.tokenizer.decode(sequence.token_ids[before:]) == "<|im_start|>user\nx<|im_end|>\n"

    def test_what_is_refused(self) -> None:
        sequence = model("f32").sequence()
        with pytest.raises(TypeError, match=r"^prompt: expected token ids, messages or a prompt"):
            sequence.append("text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^enable_thinking: only messages"):
            sequence.append([1], enable_thinking=False)
        with pytest.raises(ValueError, match=r"^ids\[1\]: 9999 is outside the vocabulary"):
            sequence.append([1, 9999])
        with pytest.raises(ValueError, match=r"^sequence: it is empty"):
            sequence.generate()
        with pytest.raises(ValueError, match=r"^n_tokens: expected a number of at least 0 and at most 0"):
            sequence.rewind(1)
        sequence.append([1, 2])
        with pytest.raises(TypeError, match=r"^images: belongs to `append`"):
            sequence.generate(images=[])
        with pytest.raises(ContextError, match="context is full"):
            sequence.append([1] * model("f32").context_length)
        with pytest.raises(ContextError, match="context is full"):
            sequence.generate(max_new_tokens=model("f32").context_length)
        assert sequence.token_ids == [1, 2]


class TestStreams:
    def test_every_piece_is_part_of_the_text_when_it_comes(self) -> None:
        sequence = model("f32").sequence()
        sequence.append([1, 2, 3])
        seen = [1, 2, 3]
        for piece in sequence.stream(max_new_tokens=6, ignore_eos=True):
            seen += piece.token_ids
            assert len(sequence) == len(seen)
        assert sequence.token_ids == seen
        assert len(seen) == 9

    def test_left_early(self) -> None:
        sequence = model("f32").sequence()
        sequence.append([1, 2, 3])
        stream = sequence.stream(max_new_tokens=6, ignore_eos=True)
        first = next(stream).token_ids
        with pytest.raises(RuntimeError, match=r"^sequence: it is in use"):
            sequence.append([1])
        stream.close()
        assert sequence.token_ids == [1, 2, 3, *first]
        np.testing.assert_array_equal(sequence.logits(), fresh_logits(model("f32"), [1, 2, 3, *first]))

    def test_arguments_are_checked_at_once(self) -> None:
        sequence = model("f32").sequence()
        sequence.append([1])
        with pytest.raises(ValueError, match=r"^temperature"):
            sequence.stream(temperature=-1)

    def test_two_threads(self) -> None:
        sequence = model("f32").sequence()
        sequence.append([1])
        stream = sequence.stream(max_new_tokens=4, ignore_eos=True)
        next(stream)
        errors: list[BaseException] = []

        def other() -> None:
            try:
                sequence.generate()
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(errors) == 1
        assert len(list(stream)) == 3


class TestLife:
    def test_closed(self) -> None:
        with model("f32").sequence() as sequence:
            sequence.append([1])
        assert len(sequence) == 0
        sequence.close()
        for use in (sequence.logits, sequence.fork, sequence.generate, lambda: sequence.append([1])):
            with pytest.raises(ValueError, match=r"^sequence: it is closed"):
                use()

    def test_bytes(self) -> None:
        sequence = model("f32").sequence()
        empty = sequence.nbytes
        sequence.append(text(1, 65))
        info = model("f32").info()
        pages = 128 * info["kv_bytes_per_token"]
        hidden = 4 * model("f32").config["hidden_size"]
        assert empty == info["state_bytes"]
        assert sequence.nbytes - pages in (empty, empty + hidden)

    def test_an_error_of_the_engine_leaves_whole_tokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C between two of the pieces that a long text is read in."""
        used = model("f32")
        ids = text(2, 3000)
        steps = itertools.count()

        class Stopping:
            def __init__(self, native: Any) -> None:
                self.native = native

            def step(self, works: Any) -> None:
                if next(steps) == 6:
                    raise KeyboardInterrupt
                self.native.step(works)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.native, name)

        sequence = used.sequence()
        used.clear_cache()
        monkeypatch.setattr(used._scheduler, "_batch", Stopping(used._scheduler._batch))
        with pytest.raises(KeyboardInterrupt):
            sequence.append(ids)
        done = len(sequence)
        assert 0 < done < len(ids)
        assert sequence.token_ids == ids[:done]
        kept = used._reader.cache
        assert kept is not None
        assert [len(text) for text in kept.texts()] == list(range(EVERY, done + 1, EVERY))
        assert len(kept) > 0
        np.testing.assert_array_equal(sequence.logits(), fresh_logits(used, ids[:done]))
        sequence.append(ids[done:])
        np.testing.assert_array_equal(sequence.logits(), fresh_logits(used, ids))
