"""Runs the Qwen3.5 family on CPUs. `Model.from_pretrained` is where to start."""

from importlib.metadata import version

from edgewise import ops
from edgewise._native import CheckpointError, ContextError, NonFiniteError, tiers
from edgewise.chat import ChatTemplate
from edgewise.model import Model
from edgewise.results import Piece, Result, Timings, TokenLogprob, Usage
from edgewise.tokenizer import Tokenizer

__version__ = version("edgewise")

__all__ = [
    "ChatTemplate",
    "CheckpointError",
    "ContextError",
    "Model",
    "NonFiniteError",
    "Piece",
    "Result",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "Usage",
    "__version__",
    "ops",
    "tiers",
]
