"""`edgewise.ops`: routing to experts and their feed-forward network, against plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgewise import ops
from rounding import as_rounded

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

QUANTIZE = {"int4": ops.quantize_int4, "int8": ops.quantize_int8}
DEQUANTIZE = {"int4": ops.dequantize_int4, "int8": ops.dequantize_int8}
seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax(logits: Floats) -> NDArray[np.float64]:
    e = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    out: NDArray[np.float64] = e / e.sum(axis=-1, keepdims=True)
    return out


@st.composite
def routers(draw: st.DrawFn) -> tuple[Floats, int]:
    """Logits in steps that give different probabilities, some of them equal, and how many experts to take."""
    experts = draw(st.integers(1, 70))
    tokens = draw(st.integers(0, 40))
    steps = np.random.default_rng(draw(seeds)).integers(-3000, 3000, size=(tokens, experts))
    return (steps / 1024).astype(np.float32), draw(st.integers(1, experts))


class TestRouting:
    @given(router=routers(), renormalise=st.booleans())
    def test_takes_the_largest_of_softmax(self, router: tuple[Floats, int], renormalise: bool) -> None:
        logits, k = router
        experts, weights = ops.route_top_k(logits, k, renormalise=renormalise)
        assert experts.dtype == np.int64
        assert weights.dtype == np.float32
        wanted = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
        np.testing.assert_array_equal(experts, wanted)
        p = np.take_along_axis(softmax(logits), wanted, axis=-1) if logits.size else np.zeros(wanted.shape)
        if renormalise:
            p /= p.sum(axis=-1, keepdims=True)
            np.testing.assert_allclose(weights.sum(axis=-1, dtype=np.float64), 1, rtol=1e-6)
        np.testing.assert_allclose(weights, p, rtol=2e-6)

    @given(router=routers(), seed=seeds)
    def test_tokens_in_another_order_get_the_same(self, router: tuple[Floats, int], seed: int) -> None:
        logits, k = router
        order = np.random.default_rng(seed).permutation(len(logits))
        experts, weights = ops.route_top_k(logits, k)
        turned = ops.route_top_k(logits[order], k)
        np.testing.assert_array_equal(turned[0], experts[order])
        np.testing.assert_array_equal(turned[1], weights[order])

    @given(value=st.floats(-(2.0**100), 2.0**100, width=32), experts=st.integers(1, 40), k=st.integers(1, 40))
    def test_equal_scores_take_the_first(self, value: float, experts: int, k: int) -> None:
        k = min(k, experts)
        chosen, weights = ops.route_top_k(np.full((2, experts), value, np.float32), k)
        np.testing.assert_array_equal(chosen, [range(k)] * 2)
        np.testing.assert_allclose(weights, 1 / k, rtol=1e-6)

    @given(router=routers())
    def test_of_one(self, router: tuple[Floats, int]) -> None:
        chosen, weights = ops.route_top_k(router[0], 1)
        np.testing.assert_array_equal(chosen[:, 0], np.argmax(router[0], axis=-1))
        assert (weights == 1).all()

    @given(router=routers())
    def test_of_all(self, router: tuple[Floats, int]) -> None:
        logits, experts = router[0], router[0].shape[1]
        plain, renormalised = (ops.route_top_k(logits, experts, renormalise=r)[1] for r in (False, True))
        np.testing.assert_allclose(plain, renormalised, rtol=2e-6)

    def test_array_that_is_not_contiguous(self) -> None:
        logits = normal(1, 6, 10)
        for view in (logits.T, logits[::2, ::3], np.asfortranarray(logits)):
            for found, wanted in zip(
                ops.route_top_k(view, 2), ops.route_top_k(np.ascontiguousarray(view), 2), strict=True
            ):
                np.testing.assert_array_equal(found, wanted)


def as_blocks(name: str, stack: Floats) -> NDArray[np.uint8]:
    return np.stack([QUANTIZE[name](matrix) for matrix in stack])


def plain(
    x: Floats, gate: Floats, up: Floats, down: Floats, experts: Indices, weights: Floats, quantized: bool
) -> NDArray[np.float64]:
    """The formula, token by token, in double precision."""
    out = np.zeros(x.shape, np.float64)
    round_if = as_rounded if quantized else np.asarray
    for t, row in enumerate(round_if(x.astype(np.float64))):
        for expert, weight in zip(experts[t], weights[t], strict=True):
            g, u = gate[expert] @ row, up[expert] @ row
            out[t] += weight * (down[expert] @ round_if(g / (1 + np.exp(-g)) * u))
    return out


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    hidden, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    experts, tokens = draw(st.integers(1, 9)), draw(st.integers(0, 20))
    k, seed = draw(st.integers(1, experts)), draw(seeds)
    chosen, weights = ops.route_top_k(normal(seed, tokens, experts), k)
    return {
        "x": normal(seed + 1, tokens, hidden),
        "gate": normal(seed + 2, experts, width, hidden) / np.float32(hidden**0.5),
        "up": normal(seed + 3, experts, width, hidden),
        "down": normal(seed + 4, experts, hidden, width) / np.float32(width**0.5),
        "experts": chosen,
        "weights": weights,
    }


PROJECTIONS = ("gate", "up", "down")


class TestFeedForward:
    @given(layer=layers())
    @settings(max_examples=40)
    def test_of_numbers(self, layer: dict[str, Any]) -> None:
        wanted = plain(**layer, quantized=False)
        bound = 1e-4 * max(1, np.abs(wanted).max(initial=0))
        np.testing.assert_allclose(ops.moe_feed_forward(**layer), wanted, rtol=0, atol=bound)

    @pytest.mark.parametrize("name", ["int4", "int8"])
    @given(layer=layers())
    @settings(max_examples=40)
    def test_of_blocks(self, name: str, layer: dict[str, Any]) -> None:
        """What is rounded on the way may fall to the next step, of which there are 127."""
        blocks = {key: as_blocks(name, layer[key]) for key in PROJECTIONS}
        stored = {
            key: np.stack([DEQUANTIZE[name](matrix, layer[key].shape[1:]) for matrix in blocks[key]])
            for key in PROJECTIONS
        }
        wanted = plain(**layer | stored, quantized=True)
        found = ops.moe_feed_forward(**layer | blocks)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=0.02 * max(1, np.abs(wanted).max(initial=0)))

    @given(layer=layers(), threads=st.integers(1, 3), floats=st.sets(st.sampled_from(PROJECTIONS)))
    @settings(max_examples=40)
    def test_neither_threads_nor_other_tokens_change_a_bit(
        self, layer: dict[str, Any], threads: int, floats: set[str]
    ) -> None:
        for key in set(PROJECTIONS) - floats:
            layer[key] = as_blocks("int4", layer[key])
        together = ops.moe_feed_forward(**layer, threads=threads)
        for t in range(len(together)):
            alone = {key: layer[key][t : t + 1] for key in ("x", "experts", "weights")}
            found = ops.moe_feed_forward(**layer | alone, threads=1)
            np.testing.assert_array_equal(found, together[t : t + 1])

    @given(layer=layers())
    @settings(max_examples=20)
    def test_experts_in_any_order_and_type(self, layer: dict[str, Any]) -> None:
        wanted = ops.moe_feed_forward(**layer)
        for dtype in (np.int64, np.int32, np.uint32):
            turned = {
                "experts": layer["experts"][:, ::-1].astype(dtype),
                "weights": layer["weights"][:, ::-1],
            }
            np.testing.assert_array_equal(ops.moe_feed_forward(**layer | turned), wanted)

    def test_one_expert_is_a_dense_network(self) -> None:
        x, gate, up, down = normal(1, 5, 40), normal(2, 1, 24, 40), normal(3, 1, 24, 40), normal(4, 1, 40, 24)
        g, u = (ops.int4_matmul(x, ops.quantize_int4(w[0]), 24).astype(np.float64) for w in (gate, up))
        inner = (g / (1 + np.exp(-g)) * u).astype(np.float32)
        wanted = ops.int4_matmul(inner, ops.quantize_int4(down[0]), 40)
        chosen, weights = np.zeros((5, 1), np.int64), np.ones((5, 1), np.float32)
        gates, ups, downs = (as_blocks("int4", w) for w in (gate, up, down))
        found = ops.moe_feed_forward(x, gates, ups, downs, chosen, weights)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=0.02 * np.abs(wanted).max())

    def test_no_experts_are_zeros(self) -> None:
        none = np.zeros((2, 0), np.int64), np.zeros((2, 0), np.float32)
        assert not ops.moe_feed_forward(ONES, GATE, GATE, DOWN, *none).any()

    def test_experts_without_channels_are_zeros(self) -> None:
        assert not ops.moe_feed_forward(ONES, GATE[:, :0], GATE[:, :0], DOWN[:, :, :0], CHOSEN, HALVES).any()

    def test_faults_reach_the_result_of_their_token(self) -> None:
        for bad in (np.nan, np.inf):
            x = np.ones((3, 3), np.float32)
            x[1, 2] = bad
            chosen, weights = np.zeros((3, 1), np.int64), np.ones((3, 1), np.float32)
            out = ops.moe_feed_forward(x, BLOCKS, BLOCKS, DOWN_BLOCKS, chosen, weights)
            assert np.isfinite(out[[0, 2]]).all()
            assert np.isnan(out[1]).all()


ONES = np.ones((2, 3), np.float32)
GATE = np.ones((4, 5, 3), np.float32)
DOWN = np.ones((4, 3, 5), np.float32)
BLOCKS = as_blocks("int4", GATE)
DOWN_BLOCKS = as_blocks("int4", DOWN)
CHOSEN = np.array([[0, 3], [1, 2]])
HALVES = np.full((2, 2), 0.5, np.float32)
POISONED = BLOCKS.copy()
POISONED[2, 0, 0, 256:258] = 0xFF, 0x7F


def moe(**other: Any) -> Floats:
    arguments = {"x": ONES, "gate": GATE, "up": GATE, "down": DOWN, "experts": CHOSEN, "weights": HALVES}
    return ops.moe_feed_forward(**arguments | other)


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ops.route_top_k(ONES, 0), ValueError, "k: 0 of 3 experts"),
    (lambda: ops.route_top_k(ONES, 4), ValueError, "k: 4 of 3 experts"),
    (lambda: ops.route_top_k(ONES, -1), ValueError, "k: expected a whole number from 0, got -1"),
    (lambda: ops.route_top_k(ONES, 1.5), TypeError, "k: expected a whole number, got float"),  # type: ignore[arg-type]
    (lambda: ops.route_top_k(ONES[:, :0], 1), ValueError, "k: 1 of 0 experts"),
    (lambda: ops.route_top_k(ONES[0], 1), ValueError, "logits: has 1 dimensions"),
    (lambda: ops.route_top_k(ONES.astype(np.float64), 1), TypeError, "logits: expected an array of float32"),
    (
        lambda: ops.route_top_k(np.array([[0, 1], [2, np.nan]], np.float32), 1),
        ValueError,
        "logits: NaN for token 1 and expert 1 is not finite",
    ),
    (
        lambda: ops.route_top_k(np.array([[-np.inf, 1]], np.float32), 1),
        ValueError,
        "logits: -inf for token 0 and expert 0 is not finite",
    ),
    (lambda: moe(experts=np.array([[0, 4], [0, 0]])), ValueError, "experts: 4 is none of the 4 experts"),
    (lambda: moe(experts=np.array([[0, -1], [0, 0]])), ValueError, "experts: -1 is none of the 4 experts"),
    (lambda: moe(experts=CHOSEN + 2**32), ValueError, "experts: 4294967296 is none"),
    (
        lambda: moe(experts=HALVES),
        TypeError,
        "experts: .* got ndarray of float32",
    ),
    (lambda: moe(experts=[[0, 1]] * 2), TypeError, "experts: .* got list"),
    (lambda: moe(experts=CHOSEN[0]), ValueError, "experts: has 1 dimensions"),
    (
        lambda: moe(experts=CHOSEN[:1], weights=HALVES[:1]),
        ValueError,
        r"experts: has shape \[1, 2\], expected a row for each of 2 tokens",
    ),
    (
        lambda: moe(weights=HALVES[:, :1].copy()),
        ValueError,
        r"weights: has shape \[2, 1\], expected \[2, 2\]",
    ),
    (lambda: moe(x=ONES[0]), ValueError, "x: has 1 dimensions"),
    (lambda: moe(x=ONES[:, :0]), ValueError, "x: has no columns"),
    (lambda: moe(gate=GATE[0]), ValueError, "gate: has 2 dimensions"),
    (lambda: moe(up=GATE.astype(np.float16)), TypeError, "up: expected an array of float32"),
    (lambda: moe(up=GATE[:3]), ValueError, r"up: has shape \[3, 5, 3\], expected \[4, 5, 3\]"),
    (lambda: moe(up=GATE[:, :4]), ValueError, r"up: has shape \[4, 4, 3\], expected \[4, 5, 3\]"),
    (lambda: moe(down=GATE), ValueError, r"down: has shape \[4, 5, 3\], expected \[4, 3, 5\]"),
    (
        lambda: moe(x=np.ones((2, 33), np.float32), gate=BLOCKS),
        ValueError,
        r"gate: has shape \[4, 1, 1, 288\], expected \[4, 1, 2, 288\]",
    ),
    (
        lambda: moe(down=DOWN_BLOCKS[:, :, :0]),
        ValueError,
        r"down: has shape \[4, 1, 0, 288\], expected \[4, 1, 1, 288\]",
    ),
    (
        lambda: moe(gate=BLOCKS[..., :287]),
        ValueError,
        r"gate: .* expected \[experts, panels, blocks, 288 or 544\]",
    ),
    (lambda: moe(gate=POISONED), ValueError, "gate: a scale of expert 2 is NaN or infinite"),
    (lambda: moe(threads=0), ValueError, "threads: at least one"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_faulty_arguments_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}") as caught:
        call()
    assert caught.value.__cause__ is None
