"""`edgewise.ops` and the native sampler: properties, against plain numpy."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

import golden
from edgewise import _native, ops
from rounding import GROUP, groups, rounded

Floats = NDArray[np.float32]
Blocks = NDArray[np.uint8]

BLOCK_BYTES = {"int4": 288, "int8": 544}
HIGHEST_LEVEL = {"int4": 8, "int8": 127}
EPSILON = float(np.finfo(np.float32).eps)

QUANTIZE: dict[str, Callable[[Floats], Blocks]] = {"int4": ops.quantize_int4, "int8": ops.quantize_int8}
DEQUANTIZE: dict[str, Callable[[Blocks | bytes, tuple[int, int]], Floats]] = {
    "int4": ops.dequantize_int4,
    "int8": ops.dequantize_int8,
}
MATMUL: dict[str, Callable[..., Floats]] = {"int4": ops.int4_matmul, "int8": ops.int8_matmul}

each_format = pytest.mark.parametrize("name", ["int4", "int8"])
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 70)


def finite(limit: float) -> st.SearchStrategy[float]:
    return st.floats(-limit, limit, width=32)


def matrices(rows: st.SearchStrategy[int], cols: st.SearchStrategy[int], limit: float = 1e4) -> Any:
    shapes = st.tuples(rows, cols)
    return shapes.flatmap(lambda shape: npst.arrays(np.float32, shape, elements=finite(limit)))


def normal(seed: int, *shape: int) -> Floats:
    """Numbers of a normal distribution, some groups of which are much larger than others."""
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.integers(-3, 4, size=(*shape[:-1], 1))
    return (random.standard_normal(shape) * scale).astype(np.float32)


def product(x: Floats, weights: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x times weights.T with rounded activations, in double precision, and a bound of what float32 loses."""
    levels, scales = rounded(x)
    activations = levels * scales[..., None].astype(np.float64)
    grouped = groups(weights.astype(np.float64))
    exact = np.einsum("tgk,ngk->tn", activations, grouped)
    per_group = np.abs(np.einsum("tgk,ngk->tng", activations, grouped)).sum(axis=-1)
    return exact, (grouped.shape[1] + 4) * EPSILON * per_group


class TestBlocks:
    @each_format
    @given(weights=matrices(sizes, sizes))
    def test_no_weight_moves_further_than_half_a_step_and_the_rounding_of_its_scale(
        self, name: str, weights: Floats
    ) -> None:
        """The bound of plain absmax scaling: the search loses no more squares of a group than that."""
        stored = DEQUANTIZE[name](QUANTIZE[name](weights), weights.shape)
        error = groups(np.square(stored.astype(np.float64) - weights)).sum(axis=-1)
        absmax = np.abs(groups(weights)).max(axis=-1).astype(np.float64)
        levels = 7 if name == "int4" else 127
        # Scales are f16: 11 bits, or steps of 2^-24 near zero.
        off = absmax / levels / 2 + absmax * 2.0**-11 + HIGHEST_LEVEL[name] * 2.0**-25
        assert (error <= GROUP * np.square(off) * (1 + 1e-6)).all()

    @each_format
    @given(seed=seeds, rows=sizes, cols=sizes)
    def test_what_blocks_can_hold_is_kept_exactly(self, name: str, seed: int, rows: int, cols: int) -> None:
        random = np.random.default_rng(seed)
        top = 7 if name == "int4" else 127
        levels = random.integers(-top, top + 1, size=(rows, cols))
        levels[:, ::GROUP] = -8 if name == "int4" else 127
        weights = (levels * 2.0 ** random.integers(-8, 3, size=(rows, 1))).astype(np.float32)
        np.testing.assert_array_equal(DEQUANTIZE[name](QUANTIZE[name](weights), (rows, cols)), weights)

    @each_format
    @given(seed=seeds, rows=sizes, cols=sizes)
    def test_each_row_is_stored_for_itself(self, name: str, seed: int, rows: int, cols: int) -> None:
        weights = normal(seed, rows, cols)
        whole = DEQUANTIZE[name](QUANTIZE[name](weights), (rows, cols))
        last = DEQUANTIZE[name](QUANTIZE[name](weights[-1:]), (1, cols))
        np.testing.assert_array_equal(whole[-1:], last)

    @each_format
    def test_sizes(self, name: str) -> None:
        for rows, cols in [(1, 1), (16, 32), (17, 32), (16, 33), (31, 100), (0, 5), (5, 0)]:
            blocks = QUANTIZE[name](np.ones((rows, cols), np.float32))
            assert blocks.shape == (-(-rows // 16), -(-cols // GROUP), BLOCK_BYTES[name])
            assert DEQUANTIZE[name](blocks, (rows, cols)).shape == (rows, cols)

    @each_format
    def test_arrays_that_are_not_contiguous(self, name: str) -> None:
        weights = normal(3, 40, 66)
        # In no order, and whole but column by column.
        for view in (weights.T[::2], weights.T, np.asfortranarray(weights)):
            np.testing.assert_array_equal(QUANTIZE[name](view), QUANTIZE[name](np.ascontiguousarray(view)))


class TestMatmul:
    @each_format
    @given(seed=seeds, tokens=st.integers(0, 20), rows=sizes, cols=st.integers(1, 300))
    def test_is_the_product_with_rounded_activations(
        self, name: str, seed: int, tokens: int, rows: int, cols: int
    ) -> None:
        x, weights = normal(seed, tokens, cols), normal(seed + 1, rows, cols)
        blocks = QUANTIZE[name](weights)
        wanted, bound = product(x, DEQUANTIZE[name](blocks, (rows, cols)))
        error = np.abs(MATMUL[name](x, blocks, rows) - wanted)
        assert (error <= bound).all()

    @each_format
    def test_without_rows_the_padding_is_there_too(self, name: str) -> None:
        x, blocks = normal(1, 3, 40), QUANTIZE[name](normal(2, 18, 40))
        out = MATMUL[name](x, blocks)
        assert out.shape == (3, 32)
        np.testing.assert_array_equal(out[:, :18], MATMUL[name](x, blocks.tobytes(), 18))

    @given(data=st.binary(min_size=2 * 512, max_size=2 * 512), seed=seeds)
    def test_any_bytes_are_levels(self, data: bytes, seed: int) -> None:
        """Level -128 too, which the writer never writes."""
        scale = np.full(16, 0.5, np.float16).tobytes()
        blocks = data[:512] + scale + data[512:] + scale
        x = normal(seed, 3, 64)
        wanted, bound = product(x, ops.dequantize_int8(blocks, (16, 64)))
        assert (np.abs(ops.int8_matmul(x, blocks, 16) - wanted) <= bound).all()

    def test_extreme_levels_do_not_overflow(self) -> None:
        scale = np.ones(16, np.float16).tobytes()
        for level in (b"\x80", b"\x7f", b"\x81"):
            for sign in (1, -1):
                x = np.full((9, 32), sign * 127, np.float32)
                number = int.from_bytes(level, "little", signed=True)
                out = ops.int8_matmul(x, level * 512 + scale, 16)
                np.testing.assert_array_equal(out, np.full((9, 16), 32 * 127 * sign * number, np.float32))

    @each_format
    @given(seed=seeds, tokens=st.integers(1, 20), threads=st.integers(1, 3))
    @settings(max_examples=30)
    def test_neither_threads_nor_other_tokens_change_a_bit(
        self, name: str, seed: int, tokens: int, threads: int
    ) -> None:
        x, weights = normal(seed, tokens, 96), normal(seed + 1, 50, 96)
        blocks = QUANTIZE[name](weights)
        together = MATMUL[name](x, blocks, 50, threads=threads)
        alone = [MATMUL[name](x[i : i + 1], blocks, 50, threads=1) for i in range(tokens)]
        np.testing.assert_array_equal(together, np.concatenate(alone))

    @each_format
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_faults_in_activations_reach_the_result(self, name: str, bad: float) -> None:
        x = np.ones((3, 40), np.float32)
        x[1, 35] = bad
        out = MATMUL[name](x, QUANTIZE[name](np.ones((4, 40), np.float32)), 4)
        assert np.isfinite(out[[0, 2]]).all()
        assert np.isnan(out[1]).all()


class TestNorm:
    @given(x=matrices(sizes, st.integers(1, 300)), eps=st.sampled_from([1e-6, 1e-3, 1.0]), seed=seeds)
    def test_is_that_of_numpy(self, x: Floats, eps: float, seed: int) -> None:
        weight = np.random.default_rng(seed).standard_normal(x.shape[1:]).astype(np.float32)
        wide = x.astype(np.float64)
        mean = np.square(wide).mean(axis=-1, keepdims=True) + np.float64(np.float32(eps))
        wanted = wide / np.sqrt(mean) * weight
        np.testing.assert_allclose(ops.rms_norm(x, weight, eps), wanted, rtol=32 * EPSILON, atol=1e-37)

    def test_of_nothing(self) -> None:
        assert ops.rms_norm(np.zeros((0, 4), np.float32), np.ones(4, np.float32)).shape == (0, 4)

    def test_of_zeros(self) -> None:
        assert not ops.rms_norm(np.zeros((2, 4), np.float32), np.ones(4, np.float32)).any()


def numpy_conv(x: Floats, weight: Floats, tail: Floats) -> NDArray[np.float64]:
    history = np.concatenate([tail, x]).astype(np.float64)
    taps = np.stack([history[i : i + len(x)] for i in range(4)], axis=-1)
    total: NDArray[np.float64] = (taps * weight).sum(axis=-1)
    out: NDArray[np.float64] = total / (1 + np.exp(-total))
    return out


class TestConv:
    @given(seed=seeds, tokens=st.integers(0, 20), channels=sizes)
    def test_is_that_of_numpy(self, seed: int, tokens: int, channels: int) -> None:
        random = np.random.default_rng(seed)
        x, weight, tail = (
            random.standard_normal(shape).astype(np.float32)
            for shape in [(tokens, channels), (channels, 4), (3, channels)]
        )
        out, new_tail = ops.short_conv(x, weight, tail)
        np.testing.assert_allclose(out, numpy_conv(x, weight, tail), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(new_tail, np.concatenate([tail, x])[-3:])

    @given(seed=seeds, cut=st.integers(0, 12))
    def test_pieces_are_the_whole(self, seed: int, cut: int) -> None:
        x, weight = normal(seed, 12, 40), normal(seed + 1, 40, 4)
        whole, tail = ops.short_conv(x, weight)
        first, between = ops.short_conv(x[:cut], weight)
        second, end = ops.short_conv(x[cut:], weight, between)
        np.testing.assert_array_equal(np.concatenate([first, second]), whole)
        np.testing.assert_array_equal(end, tail)

    def test_arguments_stay_as_they_are(self) -> None:
        x, weight, tail = normal(1, 5, 8), normal(2, 8, 4), normal(3, 3, 8)
        before = [array.copy() for array in (x, weight, tail)]
        ops.short_conv(x, weight, tail)
        for array, copy in zip((x, weight, tail), before, strict=True):
            np.testing.assert_array_equal(array, copy)


ONES = np.ones((2, 3), np.float32)
WEIGHT = np.ones(3, np.float32)
TAPS = np.ones((3, 4), np.float32)
BLOCKS = ops.quantize_int4(ONES).tobytes()

REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ops.quantize_int4(ONES.astype(np.float64)), TypeError, "weights: expected an array of float32"),
    (lambda: ops.quantize_int8(ONES.astype(np.int32)), TypeError, "weights: .* got ndarray of int32"),
    (lambda: ops.quantize_int4([[1.0]]), TypeError, "weights: .* got list"),  # type: ignore[arg-type]
    (lambda: ops.quantize_int4(WEIGHT), ValueError, "weights: has 1 dimensions"),
    (lambda: ops.quantize_int8(ONES * np.float32(np.nan)), ValueError, "weights: the weight NaN at row 0"),
    (lambda: ops.quantize_int4(ONES * np.float32(1e30)), ValueError, "weights: .* too large for the format"),
    (lambda: ops.dequantize_int4(BLOCKS[:-1], (2, 3)), ValueError, "blocks: 287 bytes; .* needs 288"),
    (lambda: ops.dequantize_int4(b"", (2**40, 2**40)), ValueError, "blocks: .* needs too many"),
    (lambda: ops.dequantize_int4(BLOCKS, (-2, 3)), ValueError, "shape: expected a whole number from 0"),
    (lambda: ops.dequantize_int4(BLOCKS, (2.0, 3)), TypeError, "shape: expected a whole number"),  # type: ignore[arg-type]
    (lambda: ops.dequantize_int4(BLOCKS, (2, 3, 1)), ValueError, "shape: expected two whole numbers"),  # type: ignore[arg-type]
    (lambda: ops.dequantize_int4(BLOCKS, 6), TypeError, "shape: expected two whole numbers"),  # type: ignore[arg-type]
    (
        lambda: ops.dequantize_int4([BLOCKS], (2, 3)),  # type: ignore[arg-type]
        TypeError,
        "blocks: expected an array of uint8 or bytes",
    ),
    (
        lambda: ops.dequantize_int8(bytes(512) + b"\xff\x7f" * 16, (2, 3)),
        ValueError,
        "blocks: a scale is NaN",
    ),
    (lambda: ops.int4_matmul(WEIGHT, BLOCKS, 2), ValueError, "x: has 1 dimensions"),
    (lambda: ops.int4_matmul(ONES[:, :0], BLOCKS, 2), ValueError, "x: has no columns"),
    (lambda: ops.int4_matmul(ONES, BLOCKS, 17), ValueError, "blocks: 288 bytes; .* needs 576"),
    (lambda: ops.int8_matmul(ONES, BLOCKS, 2), ValueError, "blocks: 288 bytes; .* needs 544"),
    (lambda: ops.int4_matmul(ONES, BLOCKS, -1), ValueError, "rows: expected a whole number from 0, got -1"),
    (lambda: ops.int4_matmul(ONES, BLOCKS, "2"), TypeError, "rows: expected a whole number, got str"),  # type: ignore[arg-type]
    (lambda: ops.int4_matmul(ONES, BLOCKS, 2, threads=0), ValueError, "threads: at least one"),
    (lambda: ops.int4_matmul(ONES, BLOCKS, 2, threads=-1), ValueError, "threads: expected"),
    (
        lambda: ops.rms_norm(ONES, np.ones(2, np.float32)),
        ValueError,
        r"weight: has shape \[2\], expected \[3\]",
    ),
    (lambda: ops.rms_norm(ONES, WEIGHT, eps=-1.0), ValueError, "eps: must be finite and not negative"),
    (lambda: ops.rms_norm(ONES, WEIGHT, eps=np.nan), ValueError, "eps: must be finite"),
    (lambda: ops.rms_norm(ONES, WEIGHT, eps="a"), TypeError, "eps: expected a number, got str"),  # type: ignore[arg-type]
    (
        lambda: ops.short_conv(ONES, TAPS.T.copy()),
        ValueError,
        r"weight: has shape \[4, 3\], expected \[3, 4\]",
    ),
    (lambda: ops.short_conv(ONES, TAPS, ONES), ValueError, r"tail: has shape \[2, 3\], expected \[3, 3\]"),
    (lambda: ops.short_conv(ONES[:, :0], TAPS[:0]), ValueError, "x: has no channels"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_faulty_arguments_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}") as caught:
        call()
    assert caught.value.__cause__ is None


CONFIG = json.dumps(golden.read_json("dense_text/config.json"))


def random_engine() -> _native.Engine:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "random.safetensors")
        _native.write_random(CONFIG, str(path), "int4", seed=5)
        return _native.Engine.open(str(path), threads=1)


ENGINE = random_engine()
VOCAB = ENGINE.vocab_size


def scored(ids: list[int]) -> _native.Sequence:
    sequence = ENGINE.sequence()
    sequence.append(ids)
    return sequence


def probabilities(logits: Floats) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    total: NDArray[np.float64] = shifted / shifted.sum()
    return total


contexts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5)
temperatures = st.floats(0.1, 3.0)


class TestSampler:
    @given(ids=contexts, seed=seeds, temperature=temperatures, top_k=st.integers(1, 40))
    def test_top_k(self, ids: list[int], seed: int, temperature: float, top_k: int) -> None:
        sequence = scored(ids)
        logits = sequence.logits()
        sampler = _native.Sampler(VOCAB, temperature=temperature, top_k=top_k, seed=seed)
        for _ in range(5):
            token, _, _ = sampler.sample(sequence)
            assert (logits > logits[token]).sum() < top_k

    @given(ids=contexts, seed=seeds, temperature=temperatures, top_p=st.floats(0.01, 1.0))
    def test_top_p(self, ids: list[int], seed: int, temperature: float, top_p: float) -> None:
        sequence = scored(ids)
        weights = probabilities(sequence.logits() / np.float32(temperature))
        token, _, _ = _native.Sampler(VOCAB, temperature=temperature, top_p=top_p, seed=seed).sample(sequence)
        assert weights[weights > weights[token]].sum() < top_p + 1e-4

    @given(ids=contexts, seed=seeds, temperature=temperatures, min_p=st.floats(0.0, 1.0))
    def test_min_p(self, ids: list[int], seed: int, temperature: float, min_p: float) -> None:
        sequence = scored(ids)
        weights = probabilities(sequence.logits() / np.float32(temperature))
        token, _, _ = _native.Sampler(VOCAB, temperature=temperature, min_p=min_p, seed=seed).sample(sequence)
        assert weights[token] >= min_p * weights.max() * (1 - 1e-4)

    @given(ids=contexts, seed=seeds)
    @example(ids=[17, 194, 194, 0, 194], seed=1)  # two tokens are equally likely, by every bit
    def test_greedy_three_ways(self, ids: list[int], seed: int) -> None:
        sequence = scored(ids)
        logits = sequence.logits()
        for options in [{"temperature": 0.0}, {"top_k": 1}]:
            sampler = _native.Sampler(VOCAB, seed=seed, **options)  # type: ignore[arg-type]
            assert sampler.sample(sequence)[0] == logits.argmax()
        token, _, _ = _native.Sampler(VOCAB, seed=seed, min_p=1.0).sample(sequence)
        assert logits[token] == logits.max()

    @given(ids=contexts, seed=seeds)
    def test_equal_seeds_give_equal_tokens(self, ids: list[int], seed: int) -> None:
        sequence = scored(ids)
        runs = [
            [sampler.sample(sequence)[0] for _ in range(20)]
            for sampler in (_native.Sampler(VOCAB, seed=seed), _native.Sampler(VOCAB, seed=seed))
        ]
        assert runs[0] == runs[1]

    def test_other_seeds_give_other_tokens(self) -> None:
        sequence = scored([1, 2, 3])
        runs = {
            tuple(sampler.sample(sequence)[0] for _ in range(20))
            for sampler in (_native.Sampler(VOCAB, seed=seed) for seed in range(20))
        }
        assert len(runs) == 20

    @given(ids=contexts, suppress=st.sets(st.integers(0, VOCAB - 1), max_size=VOCAB - 1), seed=seeds)
    def test_suppressed_tokens_never_come(self, ids: list[int], suppress: set[int], seed: int) -> None:
        sequence = scored(ids)
        for temperature in (0.0, 2.0):
            sampler = _native.Sampler(VOCAB, temperature=temperature, suppress=list(suppress), seed=seed)
            assert sampler.sample(sequence)[0] not in suppress

    @given(ids=contexts, generated=contexts, presence=st.floats(-3, 3), frequency=st.floats(-3, 3))
    def test_penalties_of_the_answer(
        self, ids: list[int], generated: list[int], presence: float, frequency: float
    ) -> None:
        sequence = scored(ids)
        sampler = _native.Sampler(
            VOCAB, temperature=0.0, presence_penalty=presence, frequency_penalty=frequency
        )
        sampler.observe(ids)
        sampler.observe(generated, generated=True)
        logits = sequence.logits().astype(np.float64)
        counts = np.bincount(generated, minlength=VOCAB)
        logits -= presence * (counts > 0) + frequency * counts
        token = sampler.sample(sequence)[0]
        assert logits[token] >= logits.max() - 1e-4

    @given(ids=contexts, penalty=st.floats(0.2, 5.0))
    def test_repetition_penalty_of_the_prompt(self, ids: list[int], penalty: float) -> None:
        sequence = scored(ids)
        sampler = _native.Sampler(VOCAB, temperature=0.0, repetition_penalty=penalty)
        sampler.observe(ids)
        logits = sequence.logits().astype(np.float64)
        seen = np.unique(ids)
        logits[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
        assert logits[sampler.sample(sequence)[0]] >= logits.max() - 1e-4

    @given(ids=contexts, count=st.integers(0, VOCAB), seed=seeds)
    @settings(max_examples=30)
    def test_log_probabilities(self, ids: list[int], count: int, seed: int) -> None:
        sequence = scored(ids)
        wanted = np.log(probabilities(sequence.logits()))
        token, logprob, top = _native.Sampler(VOCAB, logprobs=count, seed=seed).sample(sequence)
        assert logprob == pytest.approx(wanted[token], abs=1e-4)
        assert len(top) == count
        np.testing.assert_allclose([value for _, value in top], np.sort(wanted)[::-1][:count], atol=1e-4)
        assert len({token_id for token_id, _ in top}) == count

    def test_sampling_follows_the_probabilities(self) -> None:
        """Each token's count lies within five standard deviations of what is expected."""
        sequence = scored([7, 8])
        temperature, draws = 0.3, 20_000
        weights = probabilities(sequence.logits() / np.float32(temperature))
        sampler = _native.Sampler(VOCAB, temperature=temperature, seed=11)
        counts = np.bincount([sampler.sample(sequence)[0] for _ in range(draws)], minlength=VOCAB)
        spread = np.sqrt(draws * weights * (1 - weights))
        assert (np.abs(counts - draws * weights) <= 5 * spread + 1).all()

    def test_without_logits(self) -> None:
        with pytest.raises(ValueError, match=r"^sequence: it is empty"):
            _native.Sampler(VOCAB).sample(ENGINE.sequence())

    def test_of_another_vocabulary(self) -> None:
        with pytest.raises(ValueError, match=r"^logits: has 512 values, the vocabulary has 9"):
            _native.Sampler(9).sample(scored([1]))
