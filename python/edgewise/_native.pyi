"""The Rust core. Token ids in, logits and token ids out; text and files of text stay in Python."""

from collections.abc import Callable
from collections.abc import Sequence as _Seq
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

_Progress = Callable[[int, int, str], None]

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
def quantize(
    source: str,
    destination: str,
    recipe: str = "int4",
    threads: int | None = None,
    progress: _Progress | None = None,
) -> dict[str, Any]: ...
def default_recipe(name: str = "int4") -> str: ...
def write_random(config: str, destination: str, recipe: str = "int4", seed: int = 0) -> None: ...

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
    ) -> Engine: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def config(self) -> str: ...
    def side_file(self, name: str) -> bytes | None: ...
    def info(self) -> dict[str, Any]: ...
    def logits(self, ids: NDArray[np.uint32] | _Seq[int]) -> NDArray[np.float32]: ...
    def trace(self, ids: NDArray[np.uint32] | _Seq[int]) -> dict[str, NDArray[np.float32]]: ...
    def sequence(self) -> Sequence: ...

@final
class Sequence:
    """The state of one text: everything the model keeps of the tokens appended so far."""

    def append(self, ids: NDArray[np.uint32] | _Seq[int]) -> None: ...
    def reserve(self, tokens: int) -> None: ...
    def logits(self) -> NDArray[np.float32]: ...
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def fork(self) -> Sequence: ...

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
