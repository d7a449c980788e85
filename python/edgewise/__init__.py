"""Runs the Qwen3.5 family on CPUs. `Model.from_pretrained` is where to start."""

from importlib.metadata import version

from edgewise import ops
from edgewise._native import CheckpointError, ContextError, NonFiniteError, tiers
from edgewise.chat import ChatTemplate
from edgewise.media import MediaError
from edgewise.model import Model
from edgewise.prompt import Prompt
from edgewise.results import Piece, Result, Shift, Timings, TokenLogprob, Usage
from edgewise.scheduler import BusyError
from edgewise.sequence import Sequence
from edgewise.tokenizer import Tokenizer

__version__ = version("edgewise")

__all__ = [
    "BusyError",
    "ChatTemplate",
    "CheckpointError",
    "ContextError",
    "MediaError",
    "Model",
    "NonFiniteError",
    "Piece",
    "Prompt",
    "Result",
    "Sequence",
    "Shift",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "Usage",
    "__version__",
    "ops",
    "tiers",
]
