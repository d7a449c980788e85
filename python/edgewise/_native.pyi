"""The Rust core. Token ids in, logits and token ids out; text and files of text stay in Python."""

from collections.abc import Callable
from collections.abc import Sequence as _Seq
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

_Progress = Callable[[int, int, str], None]
_Blocks = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Indices = NDArray[np.int64] | NDArray[np.int32] | NDArray[np.uint32]
_Ids = NDArray[np.uint32] | _Seq[int]
_Media = _Seq[tuple[int, "VisualFeatures"]]
"""(index in `ids` of the first placeholder, what stands there) of each image or pair of frames, in order."""

class CheckpointError(ValueError):
    """A file of a checkpoint is unusable; the message names file, tensor or entry, and the reason."""

class ContextError(ValueError):
    """More tokens than the model's context holds; raised before the work, with the numbers."""

class NonFiniteError(ArithmeticError):
    """The arithmetic left the finite numbers; the message names the tensor at fault where one is found."""

def build_info() -> dict[str, Any]: ...
def tiers() -> list[str]: ...
def active_tier() -> str: ...
def available_threads() -> int: ...
def machine_limits(threads: int, seconds: float = 0.2, path: str | None = None) -> dict[str, Any]:
    """Measure what this machine can do at most, on the active tier.

    Each limit is the best pass of about `seconds`. Memory is read from a buffer of `buffer_bytes`, many times
    as large as the last-level cache; an INT8 operation is a multiplication or an addition of the tier's dot
    products with weights in registers, an f32 operation the same of its fused multiply-adds.

    Args:
        threads: the most to measure; 1, 2, 4 and so on are measured too.
        seconds: for each limit; 0 for a single pass.
        path: a file to read through a mapping. It is left out if it is smaller than the buffer.

    Returns:
        `tier`, `buffer_bytes` and `threads`, a list of dicts, one for each number of threads: `threads`,
        `memory_bytes_per_second`, `mapped_bytes_per_second` (or None), `int8_operations_per_second` and
        `f32_operations_per_second`.

    Raises:
        OSError: if `path` cannot be read.
        MemoryError: if the system does not give the buffer.
        ValueError: if `threads` or `seconds` is out of range.
    """

def available_memory() -> int | None:
    """Return the bytes of memory this process can still fill: the least of what the system has left, the page
    cache counted as left, and what its control groups allow in all; `None` where neither is known."""

def default_recipe(name: str = "int4") -> str: ...
def quantize(
    source: str,
    destination: str,
    recipe: str = "int4",
    threads: int | None = None,
    progress: _Progress | None = None,
    statistics: InputStatistics | None = None,
) -> dict[str, Any]: ...
def convert(
    source: str,
    destination: str,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> dict[str, Any]: ...
def write_random(config: str, destination: str, recipe: str = "int4", seed: int = 0) -> None: ...

# Operations of `edgewise.ops`; the docstrings are those of the module.

def quantize_int4(weights: _Floats) -> _Blocks:
    """Store a matrix in INT4 blocks: levels of 4 bits, with an f16 scale for every row and 32 columns.

    Each group gets the scale that leaves the least squared error of those a search tries. A block is 16 rows
    x 32 columns; missing rows and columns are filled up with zeros.

    Args:
        weights: float32 [rows, cols], finite.

    Returns:
        uint8 [ceil(rows / 16), ceil(cols / 32), 288]: panels of 16 rows, in each its blocks of 32 columns.

    Raises:
        TypeError: if `weights` is not an array of float32.
        ValueError: if it has not two dimensions, or a number in it is not finite or too large for the format.

    >>> import numpy as np
    >>> from edgewise import ops
    >>> weights = np.array([[0.5, -1.0, 0.25, 0.0]], np.float32)
    >>> blocks = ops.quantize_int4(weights)
    >>> blocks.shape
    (1, 1, 288)
    >>> ops.dequantize_int4(blocks, weights.shape)
    array([[ 0.5 , -1.  ,  0.25,  0.  ]], dtype=float32)
    """

def dequantize_int4(blocks: _Blocks | bytes, shape: tuple[int, int]) -> _Floats:
    """Return the numbers that INT4 blocks stand for.

    Args:
        blocks: as `quantize_int4` gives them.
        shape: (rows, cols) of the matrix.

    Returns:
        float32 [rows, cols], exactly level times scale.

    Raises:
        TypeError: if `blocks` are neither an array of uint8 nor bytes.
        ValueError: if `blocks` are not as many as `shape` needs, or a scale is not finite.

    >>> import numpy as np
    >>> from edgewise import ops
    >>> ops.dequantize_int4(ops.quantize_int4(np.array([[-8.0, 3.0]], np.float32)), (1, 2))
    array([[-8.,  3.]], dtype=float32)
    """

def int4_matmul(
    x: _Floats, blocks: _Blocks | bytes, rows: int | None = None, threads: int | None = None
) -> _Floats:
    """Multiply activations with a matrix in INT4 blocks, as the engine does: `x @ weights.T`.

    Activations are first rounded to INT8, symmetric, with a scale for every row of `x` and 128 columns, of
    which 32 that are small beside the others have a half, a quarter and so on of it for a step; products are
    exact in whole numbers within 32 columns and summed in float32 over these. The result has the same bits
    for any number of threads, and each of its rows whatever rows are computed beside it.

    Args:
        x: float32 [tokens, cols].
        blocks: a matrix [rows, cols], as `quantize_int4` gives it.
        rows: rows of that matrix; `None` for all that stand in the blocks, filled up to 16.
        threads: how many to compute with; `None` for as many as suit this computer.

    Returns:
        float32 [tokens, rows].

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes do not fit, or a scale in `blocks` is not finite.

    >>> import numpy as np
    >>> from edgewise import ops
    >>> weights = np.array([[0.5, -1.0], [0.25, 2.0]], np.float32)
    >>> x = np.array([[127.0, 2.0]], np.float32)
    >>> ops.int4_matmul(x, ops.quantize_int4(weights), rows=2)
    array([[61.5 , 35.75]], dtype=float32)
    """

def quantize_int8(weights: _Floats) -> _Blocks:
    """Store a matrix in INT8 blocks: levels of 8 bits, with an f16 scale for every row and 32 columns.

    Each group gets the scale that leaves the least squared error of those a search tries. A block is 16 rows
    x 32 columns; missing rows and columns are filled up with zeros.

    Args:
        weights: float32 [rows, cols], finite.

    Returns:
        uint8 [ceil(rows / 16), ceil(cols / 32), 544]: panels of 16 rows, in each its blocks of 32 columns.

    Raises:
        TypeError: if `weights` is not an array of float32.
        ValueError: if it has not two dimensions, or a number in it is not finite or too large for the format.

    >>> import numpy as np
    >>> from edgewise import ops
    >>> weights = np.array([[127.0, -3.0, 0.0, 1.0]], np.float32)
    >>> blocks = ops.quantize_int8(weights)
    >>> blocks.shape
    (1, 1, 544)
    >>> ops.dequantize_int8(blocks, weights.shape)
    array([[127.,  -3.,   0.,   1.]], dtype=float32)
    """

def dequantize_int8(blocks: _Blocks | bytes, shape: tuple[int, int]) -> _Floats:
    """Return the numbers that INT8 blocks stand for.

    Args:
        blocks: as `quantize_int8` gives them.
        shape: (rows, cols) of the matrix.

    Returns:
        float32 [rows, cols], exactly level times scale.

    Raises:
        TypeError: if `blocks` are neither an array of uint8 nor bytes.
        ValueError: if `blocks` are not as many as `shape` needs, or a scale is not finite.

    >>> import numpy as np
    >>> from edgewise import ops
    >>> ops.dequantize_int8(ops.quantize_int8(np.array([[127.0, -3.0]], np.float32)), (1, 2))
    array([[127.,  -3.]], dtype=float32)
    """

def int8_matmul(
    x: _Floats, blocks: _Blocks | bytes, rows: int | None = None, threads: int | None = None
) -> _Floats:
    """Multiply activations with a matrix in INT8 blocks, as the engine does: `x @ weights.T`.

    Activations are first rounded to INT8, symmetric, with a scale for every row of `x` and 128 columns, of
    which 32 that are small beside the others have a half, a quarter and so on of it for a step; products are
    exact in whole numbers within 32 columns and summed in float32 over these. The result has the same bits
    for any number of threads, and each of its rows whatever rows are computed beside it.

    Args:
        x: float32 [tokens, cols].
        blocks: a matrix [rows, cols], as `quantize_int8` gives it.
        rows: rows of that matrix; `None` for all that stand in the blocks, filled up to 16.
        threads: how many to compute with; `None` for as many as suit this computer.

    Returns:
        float32 [tokens, rows].

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes do not fit, or a scale in `blocks` is not finite.

    >>> import numpy as np
    >>> from edgewise import ops
    >>> weights = np.array([[0.5, -1.0], [0.25, 2.0]], np.float32)
    >>> x = np.array([[127.0, 2.0]], np.float32)
    >>> ops.int8_matmul(x, ops.quantize_int8(weights), rows=2).round(1)
    array([[61.5, 35.7]], dtype=float32)
    """

def rms_norm(x: _Floats, weight: _Floats, eps: float = 1e-6) -> _Floats:
    """Divide each row by its root mean square: `x / sqrt(mean(x^2) + eps) * weight`.

    The weight is multiplied as it stands; checkpoints of Qwen3.5 store most of theirs less 1.

    Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization (arXiv 1910.07467).

    Args:
        x: float32 [rows, width].
        weight: float32 [width].
        eps: added to the mean square; finite and not negative.

    Returns:
        float32 [rows, width].

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes do not fit, or `eps` is out of range.

    >>> import numpy as np
    >>> from edgewise import ops
    >>> ops.rms_norm(np.array([[3.0, 4.0]], np.float32), np.array([1.0, 2.0], np.float32), eps=0.0).round(4)
    array([[0.8485, 2.2627]], dtype=float32)
    """

def short_conv(x: _Floats, weight: _Floats, tail: _Floats | None = None) -> tuple[_Floats, _Floats]:
    """Convolve each channel with its own kernel of four taps over time, then apply SiLU.

    `out[t, c] = silu(sum of x[t - 3 + i, c] * weight[c, i] for i in 0..4)`: causal, the last tap meets the
    present. What came before `x` stands in `tail`, so that a text may be convolved in pieces with the same
    result.

    Source: the short convolution of Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464).

    Args:
        x: float32 [tokens, channels].
        weight: float32 [channels, 4], the oldest input's tap first.
        tail: float32 [3, channels], the three inputs before `x`, oldest first; `None` for zeros.

    Returns:
        float32 [tokens, channels], and the tail for what follows `x`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes do not fit.

    >>> import numpy as np
    >>> from edgewise import ops
    >>> x = np.array([[1.0], [2.0]], np.float32)
    >>> out, tail = ops.short_conv(x, np.array([[0.0, 0.0, 10.0, 1.0]], np.float32))
    >>> out.ravel().round(3)
    array([ 0.731, 12.   ], dtype=float32)
    >>> tail.ravel()
    array([0., 1., 2.], dtype=float32)
    """

def gated_delta_rule(
    q: _Floats,
    k: _Floats,
    v: _Floats,
    g: _Floats,
    beta: _Floats,
    state: _Floats | None = None,
    *,
    form: str = "recurrent",
    use_qk_l2norm: bool = False,
    chunk_size: int | None = None,
    threads: int | None = None,
) -> tuple[_Floats, _Floats]:
    """Run the gated delta rule over a text: a memory that forgets by `g` and learns by `beta`.

    For each token, with the state S `[k_dim, v_dim]` of a head: `S *= exp(g)`;
    `S += outer(k, beta * (v - S.T @ k))`; `out = S.T @ (q / sqrt(k_dim))`. Value head h reads
    query and key head `h // (value_heads // key_heads)`.

    Source: Yang et al. 2024, Gated Delta Networks (arXiv 2412.06464).

    Args:
        q: float32 [tokens, key_heads, k_dim].
        k: float32 [tokens, key_heads, k_dim].
        v: float32 [tokens, value_heads, v_dim].
        g: float32 [tokens, value_heads], the log of the decay; not positive.
        beta: float32 [tokens, value_heads].
        state: float32 [value_heads, k_dim, v_dim] before the first token; `None` for zeros.
        form: `recurrent`, token by token, or `chunked`, many tokens at once; the engine takes eight at once.
        use_qk_l2norm: first divide each query and key by its length.
        chunk_size: tokens of a chunk of the chunked form.
        threads: how many to compute with; `None` for as many as suit this computer.

    Returns:
        float32 [tokens, value_heads, v_dim], and the state after the last token.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes do not fit, or `form` is not one of the two.

    >>> import numpy as np
    >>> from edgewise import ops
    >>> q = k = np.ones((2, 1, 4), np.float32) / 2
    >>> v = np.array([[[1.0]], [[3.0]]], np.float32)
    >>> g, beta = np.zeros((2, 1), np.float32), np.ones((2, 1), np.float32)
    >>> out, state = ops.gated_delta_rule(q, k, v, g, beta)
    >>> out.ravel()
    array([0.5, 1.5], dtype=float32)
    >>> state.ravel()
    array([1.5, 1.5, 1.5, 1.5], dtype=float32)
    """

def route_top_k(logits: _Floats, k: int, *, renormalise: bool = True) -> tuple[NDArray[np.int64], _Floats]:
    """Choose the experts each token goes to: the `k` largest of softmax(logits).

    Of experts with equal logits the first ones are taken.

    Source: the router of Qwen3-Next and Qwen3.5 in Hugging Face transformers.

    Args:
        logits: float32 [tokens, experts], finite.
        k: experts of a token.
        renormalise: divide the weights of each token by their sum.

    Returns:
        int64 [tokens, k], the experts by falling weight; and float32 [tokens, k], their weights.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if `logits` has not two dimensions or a number in it is not finite, or there are no `k`
            experts.

    >>> import numpy as np
    >>> from edgewise import ops
    >>> experts, weights = ops.route_top_k(np.array([[0.1, 2.0, 0.5, 1.0]], np.float32), 2)
    >>> experts
    array([[1, 3]])
    >>> weights.round(3)
    array([[0.731, 0.269]], dtype=float32)
    """

def moe_feed_forward(
    x: _Floats,
    gate: _Floats | _Blocks,
    up: _Floats | _Blocks,
    down: _Floats | _Blocks,
    experts: _Indices,
    weights: _Floats,
    threads: int | None = None,
) -> _Floats:
    """Run a feed-forward network of experts, as the engine does, each token through its own few.

    `out[t] = sum of weights[t, i] * (silu(x[t] @ gate[e].T) * (x[t] @ up[e].T)) @ down[e].T` over the experts
    `e = experts[t, i]` of the token, added in rising order of `e`. Where matrices are blocks, what they are
    multiplied with is first rounded to INT8, as `int4_matmul` says. The result has the same bits for any
    number of threads, and each of its rows whatever rows are computed beside it.

    Checkpoints store gate and up as one array `gate_up` [experts, 2 * width, hidden]: pass
    `gate_up[:, :width]` and `gate_up[:, width:]`. A shared expert is one more expert, whose weight is the
    sigmoid of its own gate, for every token.

    Source: the sparse block of Qwen3-Next and Qwen3.5 in Hugging Face transformers.

    Args:
        x: float32 [tokens, hidden].
        gate: float32 [experts, width, hidden], or INT4 or INT8 blocks, uint8
            [experts, ceil(width / 16), ceil(hidden / 32), 288 or 544]: for each expert what `quantize_int4`
            or `quantize_int8` gives.
        up: the same.
        down: float32 [experts, hidden, width], or blocks of it.
        experts: integers [tokens, k], such as `route_top_k` gives.
        weights: float32 [tokens, k].
        threads: how many to compute with; `None` for as many as suit this computer.

    Returns:
        float32 [tokens, hidden].

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes do not fit, a scale in blocks is not finite, or there is no such expert.

    >>> import numpy as np
    >>> from edgewise import ops
    >>> gate = np.array([[[100.0, 0.0]], [[0.0, 50.0]]], np.float32)  # two experts of one channel
    >>> up = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], np.float32)
    >>> down = np.array([[[1.0], [0.0]], [[0.0], [1.0]]], np.float32)
    >>> x = np.array([[1.0, 2.0]], np.float32)
    >>> ops.moe_feed_forward(x, gate, up, down, np.array([[1, 0]]), np.array([[0.75, 0.25]], np.float32))
    array([[ 25., 150.]], dtype=float32)
    """

def position_ids(
    tokens: int, spans: _Seq[tuple[int, int, int]], first: int = 0
) -> tuple[NDArray[np.uint32], int]:
    """Return the rotary positions of a prompt with images.

    A text token advances time, row and column by one. The tokens of an image, or of a pair of video frames,
    share the time at which it begins and count rows and columns from there; text goes on one behind the
    largest of them.

    Args:
        tokens: tokens of the prompt.
        spans: (index of the first token, rows, columns) of each image or pair of frames, in order and apart.
            Rows and columns count tokens, not patches: half of those in `grid_hw`.
        first: position of the first token, what `Sequence.next_position` says before the prompt is appended.

    Returns:
        uint32 [3, tokens], the positions on the axes time, row and column; and the position of the token
        after the prompt.

    Raises:
        ValueError: if spans are empty, overlap or do not fit into the prompt, or there are more than 2^30
            tokens.
        MemoryError: if there is no memory for so many positions.

    >>> from edgewise import _native
    >>> positions, next_position = _native.position_ids(5, [(1, 1, 3)])
    >>> positions.tolist(), next_position
    ([[0, 1, 1, 1, 4], [0, 1, 1, 1, 4], [0, 1, 2, 3, 4]], 5)

    Source: Qwen2-VL (Wang et al. 2024, arXiv 2409.12191).
    """

@final
class InputStatistics:
    """What the matrices of a model read over a text: second moments within groups of 32 channels."""

    @property
    def tokens(self) -> int: ...
    @property
    def inputs(self) -> int: ...

@final
class Engine:
    @staticmethod
    def open(
        path: str,
        dtype: str = "auto",
        kv_dtype: str = "auto",
        recipe: str | None = None,
        threads: int | None = None,
        progress: _Progress | None = None,
        yarn_factor: float | None = None,
        prefetch: bool | None = None,
        large_pages: bool | None = None,
    ) -> Engine:
        """Open a checkpoint.

        `yarn_factor` and `large_pages`: see `Model.from_pretrained`. `prefetch`: whether the experts chosen
        for a token are asked for from disk before they are used; by default where the checkpoint is larger
        than the memory there is. Results do not depend on it.
        """

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def config(self) -> str: ...
    def side_file(self, name: str) -> bytes | None: ...
    def info(self) -> dict[str, Any]:
        """Return parameters, formats, memory and threads.

        `large_page_bytes` tells how much of the weights was moved from the file into large pages by now.
        `converted_from` is `GGUF` for a file of that format, else `None`. Of a mixture of experts,
        `expert_bytes` tells what all experts take, `expert_bytes_per_token` what those chosen for a token do
        (0 in a dense model), and `prefetch` whether they are asked for from disk ahead.
        """

    def costs(self) -> dict[str, Any]:
        """Return what a token costs, counted from the weights.

        Returns:
            `decode_bytes`: bytes of weights and constant state that decoding one token reads, on average, and
            `state_bytes` those of state; the KV cache adds `info()["kv_bytes_per_token"]` for each token of
            context. `layer_bytes`: bytes of all weights
            of the layers. `prefill_operations`: multiplications and additions, counted apart, of one token of
            a prompt with weights, `int8` and `f32`. `skipped_operations`: the part of the last layer that all
            but the last token of a pass leave out; not in `prefill_operations`.
        """

    def input_statistics(self, ids: _Ids, window: int, progress: _Progress | None = None) -> InputStatistics:
        """Read a text in windows, each on its own, and return what the matrices of the text model read."""

    def settle(self) -> None:
        """Move what is left of the weights and of caches into large pages now, as far as there is room.

        It may be called, and takes effect, while other threads compute. Nothing is moved if the engine was
        opened with `large_pages=False`.

        Raises:
            ValueError: if the system refuses the memory.
        """

    def memory_speed(self, seconds: float = 0.05) -> float | None:
        """Return the bytes per second at which the threads read the weights that every token meets.

        Args:
            seconds: about how long; each of four ways of reading is tried at least once.

        Returns:
            The best of all passes, `None` if these weights are less than four times the last-level cache.

        Raises:
            ValueError: if `seconds` is no length of time.
        """

    def start_profile(self) -> None:
        """Begin to measure where the time of passes goes. Meant for one sequence at a time, of text."""

    def stop_profile(self) -> dict[str, dict[str, float]]:
        """Stop that, and return what each kind of operation took.

        Returns:
            By kind `calls`, `seconds`, `bytes` to read (of weights, state and cache) and `operations`
            (multiplications and additions of products with weights).
        """

    @property
    def vision(self) -> dict[str, int] | None:
        """Shapes and token ids of the vision tower; `None` for a model that reads text only.

        `depth` blocks of width `hidden_size`; `patch_size` pixels a side, `temporal_patch_size` frames and
        `in_channels` colours of a patch; `merge_size` patches a side of a token; `image_token_id` and
        `video_token_id`, the placeholders; `vision_start_token_id` and `vision_end_token_id` around them.
        """

    def encode(
        self, pixel_values: _Floats, grid_hw: tuple[int, int], progress: _Progress | None = None
    ) -> VisualFeatures:
        """Encode one image, or one pair of frames of a video, with the vision tower.

        May be called from several threads at once; the result depends on the arguments only. Memory beyond
        the features is taken for the call: 30 KB for each patch in the widest towers of Qwen3.5, of which 6
        are a copy of the pixels.

        Args:
            pixel_values: float32 [rows * columns, in_channels * temporal_patch_size * patch_size^2], one row
                for each patch, normalised as the checkpoint's preprocessor says. The four patches of a token
                stand side by side, tokens row by row; in a patch channels, frames, rows, columns, outermost
                first. A single image is a pair of the same frame twice.
            grid_hw: (rows, columns) of the grid in patches, multiples of `merge_size`; at most
                262144 patches.
            progress: called with (blocks done, all blocks, "vision") before the patches are embedded, before
                each block and after the last. What it raises ends the work and is raised here, as is what
                signals raise.

        Returns:
            rows * columns / merge_size^2 tokens.

        Raises:
            TypeError: if an argument has the wrong type; pixels are never converted to float32.
            ValueError: if the model has no vision tower, the grid is out of range, or the pixels do not fit
                it or are not finite.
            NonFiniteError: if features come out that are not finite.
            MemoryError: if there is no memory for an image of that size.
        """

    def trace_vision(self, pixel_values: _Floats, grid_hw: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
        """Encode as `encode` does, and return what was computed on the way.

        Returns:
            `patch_embed`, `block_input` (with positions) and `block{i}`, float32 [rows * columns, width of
            the tower]; `merged` and `deepstack{j}`, as `VisualFeatures` has them.
        """

    def logits(self, ids: _Ids, media: _Media | None = None) -> NDArray[np.float32]:
        """Return the logits after every token of a text, float32 [tokens, vocab].

        Arguments and errors are those of `Sequence.append`; also NonFiniteError, if a logit is not finite.
        """

    def trace(self, ids: _Ids, media: _Media | None = None) -> dict[str, NDArray[Any]]:
        """Run a text and return what was computed on the way, for comparison with other implementations.

        Arguments and errors are those of `logits`.

        Returns:
            `embed` (with features in place), `layer{i}.hidden` (before DeepStack features are added) and
            `final_norm`, float32 [tokens, hidden]; `logits` [tokens, vocab]; of the state after the text,
            `layer{i}.recurrent_state` [value heads, key width, value width] and `layer{i}.conv_state`
            [channels, 3] or `layer{i}.k_cache` and `layer{i}.v_cache` [heads, tokens, head width]. Of layers
            with experts, `layer{i}.router_logits` [tokens, experts], and of those chosen for each token, by
            falling weight, `layer{i}.selected_experts` (int64) and `layer{i}.router_weights`
            [tokens, chosen].
        """

    def sequence(self) -> Sequence: ...
    def batch(self) -> Batch: ...
    def fingerprint(self) -> str:
        """Return a number for the model, its formats of weights and the type of its KV cache, as 32 digits.

        Of large matrices a few bytes are looked at, of experts none: it tells models apart that differ by
        training or conversion, and is no defence against forgery.
        """

@final
class VisualFeatures:
    """What an engine has seen of one image or pair of frames: embeddings that stand in place of tokens.

    Made by `Engine.encode`, for that engine only, which it keeps alive. It never changes; any number of
    sequences and threads may use it.
    """

    @property
    def grid_hw(self) -> tuple[int, int]:
        """(rows, columns) of the grid in patches, as given to `encode`."""

    @property
    def tokens(self) -> int:
        """How many placeholders it takes the place of."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """Float32 [tokens, hidden], row by row of the picture; a new copy each time."""

    @property
    def deepstack(self) -> list[NDArray[np.float32]]:
        """What is added to the hidden states after decoder layers 0, 1, ..; nothing in Qwen3.5.

        Float32 [tokens, hidden] each, new copies.
        """

@final
class Sequence:
    """The state of one text: everything the model keeps of the tokens appended so far."""

    def append(self, ids: _Ids, media: _Media | None = None) -> None:
        """Read tokens.

        Args:
            ids: token ids.
            media: features and where they stand: (index in `ids` of the first placeholder, features), in
                order. Each takes `features.tokens` ids, all of them image or video placeholders, and lies in
                `ids` as a whole. Placeholders that nothing takes are read as ordinary tokens.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an id is outside the vocabulary, or media overlap, reach outside, stand on other
                ids or come from another engine.
            ContextError: if the context has no room for all tokens.
            MemoryError: if the state cannot grow.
            KeyboardInterrupt: at Ctrl-C, or what else a signal raises.

        After the first three errors nothing has been read. After the others the sequence holds the first of
        the tokens, see `len`, and never a part of an image.
        """

    def work(
        self,
        ids: _Ids,
        media: _Media | None = None,
        sampler: Sampler | None = None,
        places: _Seq[int] = ...,
    ) -> Work:
        """Say what to append in steps that other sequences take part in; nothing is done yet.

        Args:
            ids: token ids, perhaps none.
            media: as in `append`.
            sampler: picks a token behind them.
            places: rising numbers of these tokens after which a copy of the sequence is kept, see
                `Work.kept`. A step goes across them.

        Raises:
            TypeError, ValueError: as `append`, but ids are looked at in the first step; and if a place does
                not exist or lies inside an image.
        """

    def reserve(self, tokens: int) -> None:
        """Take memory for `tokens` tokens in all, at most the context, before they come.

        Raises:
            MemoryError: if there is not so much.
        """

    def logits(self) -> NDArray[np.float32]: ...
    def __len__(self) -> int: ...
    @property
    def next_position(self) -> int:
        """Rotary position of the next token.

        Equal to `len` as long as there is only text; an image moves it on by its longer side in tokens.
        """

    @property
    def nbytes(self) -> int: ...
    def fork(self) -> Sequence: ...
    def save(
        self, path: str, fingerprint: str, ids: _Ids, media: _Seq[tuple[int, VisualFeatures, bytes]]
    ) -> None:
        """Write the state to a safetensors file, whole or not at all.

        Args:
            path: the file, replaced if it is there.
            fingerprint: what `load` must be called with.
            ids: all tokens appended.
            media: of all pictures appended the index of the first token, the features, and the digest of 16
                bytes by which a `TextPath` knows them.

        Raises:
            ValueError: if `ids` are not as many as the sequence has, or a digest has not 16 bytes.
            OSError: if the file cannot be written.
        """

    @staticmethod
    def load(
        engine: Engine, path: str, fingerprint: str
    ) -> tuple[Sequence, list[int], list[tuple[int, VisualFeatures, bytes]]]:
        """Read what `save` wrote: the sequence, and the ids and media that `save` was given.

        Raises:
            OSError: if the file cannot be read.
            CheckpointError: if it is no saved sequence, is damaged or cut short, has another fingerprint, or
                does not fit the engine.
            ContextError: if it has more tokens than the context.
        """

@final
class Work:
    """What `Sequence.work` returned; `Batch.step` does it."""

    @property
    def left(self) -> int:
        """Tokens to be appended yet."""

    @property
    def finished(self) -> bool:
        """Whether there is a result, or the work was given up. May be asked while a step is under way."""

    def result(self) -> tuple[int, float | None, list[tuple[int, float]]] | None:
        """Return what `Sampler.sample` would, or `None` without a sampler. Can be had once.

        Raises:
            ContextError, MemoryError, NonFiniteError, ValueError: what went wrong in a step.
            RuntimeError: if the work is not finished, or the result was taken.
        """

    def kept(self) -> list[Sequence]:
        """Return the copies of the sequence that were kept since this was last asked; the longest comes last.

        Raises:
            RuntimeError: if a step is under way with it.
        """

    def abandon(self) -> None:
        """Give it up. Tokens appended so far stay, but for those of an image that is not complete.

        Raises:
            RuntimeError: if a step is under way with it.
        """

@final
class Batch:
    """Steps of several sequences of one engine, which share passes over the weights."""

    @property
    def pass_tokens(self) -> int:
        """Tokens that a step should have in all, so that it is over soon."""

    def step(self, works: _Seq[tuple[Work, int]]) -> None:
        """Append to each sequence so many of the tokens of its work, and sample where that was the last one.

        Each sequence gets the bits that it would get alone. What goes wrong with one is the outcome of its
        work, and the others do not notice. Works that are finished are left out.

        Args:
            works: what to do, and how many tokens of it at most in this step.

        Raises:
            RuntimeError: if another step is under way.
        """

@final
class TextPath:
    """What stands at each place of a text: a token's id, or the digest of the picture that stands there."""

    def __new__(cls) -> TextPath: ...
    def extend(self, ids: _Ids) -> None:
        """Add token ids."""

    def mark(self, start: int, tokens: int, digest: bytes) -> None:
        """Say that a picture with this digest of 16 bytes takes so many places from `start` on.

        Raises:
            ValueError: if it reaches beyond the end, or the digest has not 16 bytes.
        """

    def truncate(self, places: int) -> None:
        """Forget all places from this one on."""

    def copy(self) -> TextPath: ...
    def __len__(self) -> int: ...

@final
class PrefixCache:
    """States after the beginnings of earlier texts, up to a number of bytes; the last used are kept.

    Each page, state and path counts once, however many entries share it. May be used by several threads. In a
    child process forked while another thread used it, it holds nothing.
    """

    def __new__(cls, engine: Engine, limit: int) -> PrefixCache: ...
    @property
    def limit(self) -> int:
        """Bytes at most."""

    @property
    def nbytes(self) -> int:
        """Bytes held now."""

    def __len__(self) -> int: ...
    def clear(self) -> None:
        """Forget everything."""

    def known(self, path: TextPath, most: int) -> int:
        """Return how many of the first `most` places some text in the cache has in common with `path`."""

    def find(self, path: TextPath, beyond: int, most: int) -> Sequence | None:
        """Return a fork of the longest state of a beginning of `path`.

        `None` if there is none of more than `beyond` and at most `most` tokens.
        """

    def put(self, path: TextPath, sequence: Sequence) -> None:
        """Keep a fork of a sequence that has read the first places of `path`, if it fits at all.

        Raises:
            ValueError: if the path is shorter than the sequence, or the sequence comes from another engine.
        """

    def exchange(self, path: TextPath, sequence: Sequence) -> list[tuple[list[int], Sequence]]:
        """Do what `put` does, and return the texts without pictures that had to go for it, with their ids."""

    def make_room(self, bytes: int) -> list[tuple[list[int], Sequence]]:
        """Let go of what was used longest ago, so that so many more bytes have room, if they ever can have.

        Returns:
            The texts without pictures that had to go, with their ids.
        """

    def texts(self) -> list[list[int]]:
        """Return the ids of all texts without pictures that there is a state for; the last used come last."""

@final
class Sampler:
    def __new__(
        cls,
        vocab_size: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int = 0,
        logprobs: int | None = None,
        suppress: _Seq[int] = ...,
    ) -> Sampler: ...
    def observe(self, ids: _Seq[int], generated: bool = False) -> None: ...
    def sample(self, sequence: Sequence) -> tuple[int, float | None, list[tuple[int, float]]]: ...
