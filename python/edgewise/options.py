"""The arguments of `Model.generate`: their names, their limits and where their defaults come from."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, TypedDict

from edgewise import checks, inputs, media_options
from edgewise._native import CheckpointError
from edgewise.checks import Range
from edgewise.inputs import ImageInput, VideoInput
from edgewise.media_options import MediaOptions
from edgewise.placeholders import VideoPrompt
from edgewise.progress import Progress
from edgewise.scheduler import Signal

OnFull: TypeAlias = Literal["error", "shift"]
"""What happens when a text would be longer than the context."""

DEFAULT_NEW_TOKENS = 512
GENERATION_CONFIG = "generation_config.json"


class PromptArguments(TypedDict, total=False):
    """Keyword arguments of `Model.prepare`; `None` is the same as leaving one out."""

    raw: bool | None
    tools: Sequence[Mapping[str, Any]] | None
    enable_thinking: bool | None
    chat_template_kwargs: Mapping[str, Any] | None
    images: ImageInput | None
    videos: VideoInput | None
    min_pixels: int | None
    max_pixels: int | None
    fps: float | None
    num_frames: int | None
    max_frames: int | None
    source_fps: float | None
    video_prompt: VideoPrompt | None


class GenerationArguments(PromptArguments, total=False):
    """Keyword arguments of `Model.generate` and `Model.stream`; `None` is the same as leaving one out."""

    max_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    suppress_tokens: Sequence[int] | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    skip_special_tokens: bool | None
    logprobs: int | None
    progress: Progress | bool | None
    on_full: OnFull | None
    keep_first: int | None
    cancel: Signal | None


@dataclass(frozen=True)
class SamplingOptions:
    """The arguments of the native sampler. A temperature of 0 takes the likeliest token."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logprobs: int | None
    suppress: tuple[int, ...]


@dataclass(frozen=True)
class PromptOptions:
    """How the input of `Model.generate` becomes a prompt."""

    raw: bool
    tools: Sequence[Mapping[str, Any]] | None
    enable_thinking: bool | None
    chat_template_kwargs: Mapping[str, Any]
    images: list[Any]
    videos: list[Any]
    video_prompt: VideoPrompt
    media: MediaOptions

    @classmethod
    def resolve(cls, arguments: Mapping[str, Any]) -> PromptOptions:
        """Check `arguments` and complete them with built-in values.

        Args:
            arguments: as in `PromptArguments`.

        Raises:
            TypeError: for an argument that does not exist or has the wrong type.
            ValueError: for a value out of range.
        """
        return cls.of({**_BUILT_IN, **_checked(arguments, PromptArguments.__annotations__)})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> PromptOptions:
        """Return those among checked values that are about the prompt."""
        names = [field.name for field in fields(cls) if field.name != "media"]
        media = MediaOptions(**{name: values[name] for name in media_options.RANGES})
        return cls(**{name: values[name] for name in names}, media=media)

    def used_by_template(self) -> list[str]:
        """Return the names of those arguments given that only a chat template can obey."""
        given = {
            "tools": self.tools is not None,
            "enable_thinking": self.enable_thinking is not None,
            "chat_template_kwargs": bool(self.chat_template_kwargs),
        }
        return [name for name, is_given in given.items() if is_given]

    def used_by_media(self) -> list[str]:
        """Return the names of those arguments given that bring images and videos or say how to read them."""
        given = [name for name in ("images", "videos") if getattr(self, name)]
        return given + [name for name, value in asdict(self.media).items() if value is not None]

    def template_variables(self) -> dict[str, Any]:
        """Return what the chat template is to be told beside the messages."""
        return {
            "tools": self.tools,
            "enable_thinking": self.enable_thinking,
            **self.chat_template_kwargs,
        }


@dataclass(frozen=True)
class GenerationOptions:
    """Checked arguments of one call, defaults filled in."""

    sampling: SamplingOptions
    prompt: PromptOptions
    max_new_tokens: int
    clip_to_context: bool
    """Whether `max_new_tokens` is only a default, to be lowered to what the context has room for."""
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    skip_special_tokens: bool
    progress: Progress | bool | None
    on_full: OnFull
    keep_first: int | None
    cancel: Signal | None

    @classmethod
    def resolve(cls, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> GenerationOptions:
        """Check `arguments` and completes them: first from `defaults`, then with built-in values.

        Args:
            arguments: as in `GenerationArguments`.
            defaults: what `checkpoint_defaults` returned.

        Raises:
            TypeError: for an argument that does not exist or has the wrong type.
            ValueError: for a value out of range.
        """
        given = _checked(arguments, GenerationArguments.__annotations__)
        values = {**_BUILT_IN, **defaults, **given}
        if _is_greedy(given, defaults, values):
            values |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        return cls(
            sampling=_sampling(values),
            prompt=PromptOptions.of(values),
            max_new_tokens=values["max_new_tokens"],
            clip_to_context="max_new_tokens" not in given,
            stop=values["stop"],
            stop_token_ids=values["stop_token_ids"],
            ignore_eos=values["ignore_eos"],
            skip_special_tokens=values["skip_special_tokens"],
            progress=values["progress"],
            on_full=values["on_full"],
            keep_first=values["keep_first"],
            cancel=values["cancel"],
        )


def checkpoint_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a checkpoint's `generation_config.json` has values for.

    Raises:
        CheckpointError: for a value that would be refused as an argument.
    """
    found = {name: value for name, value in generation_config.items() if name in _FROM_CHECKPOINT}
    try:
        return _checked(found, GenerationArguments.__annotations__)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{GENERATION_CONFIG}: {error}") from None


_RANGES = {
    "max_new_tokens": Range(int, 1),
    "temperature": Range(float, 0),
    "top_k": Range(int, 0),
    "top_p": Range(float, 0, 1, above=True),
    "min_p": Range(float, 0, 1),
    "repetition_penalty": Range(float, 0, above=True),
    "presence_penalty": Range(float),
    "frequency_penalty": Range(float),
    "seed": Range(int, 0, 2**64 - 1),
    "logprobs": Range(int, 0),
    "keep_first": Range(int, 0),
    **media_options.RANGES,
}
_FLAGS = ("do_sample", "ignore_eos", "skip_special_tokens", "raw", "enable_thinking")
_TOKEN_IDS = ("stop_token_ids", "suppress_tokens")
_SHAPING = ("temperature", "top_k", "top_p", "min_p")
_FROM_CHECKPOINT = (
    "max_new_tokens", "do_sample", *_SHAPING, "repetition_penalty", "presence_penalty", "frequency_penalty",
    "suppress_tokens",
)  # fmt: skip
_BUILT_IN: dict[str, Any] = {
    "max_new_tokens": DEFAULT_NEW_TOKENS,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "suppress_tokens": (),
    "seed": None,
    "stop": (),
    "stop_token_ids": (),
    "ignore_eos": False,
    "skip_special_tokens": True,
    "logprobs": None,
    "raw": False,
    "tools": None,
    "enable_thinking": None,
    "chat_template_kwargs": {},
    "images": [],
    "videos": [],
    "video_prompt": "flat",
    "progress": None,
    "on_full": "error",
    "keep_first": None,
    "cancel": None,
    **dict.fromkeys(media_options.RANGES),
}


def _checked(arguments: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the arguments that are not `None`, each of the right type and within its limits."""
    for name in arguments:
        if name not in known:
            raise TypeError(f"unexpected keyword argument '{name}'{_suggestion(name, known)}")
    return {name: _check(name, value) for name, value in arguments.items() if value is not None}


def _check(name: str, value: Any) -> Any:
    if name in _RANGES:
        return _RANGES[name].check(name, value)
    if name in _FLAGS and not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    if name in _TOKEN_IDS:
        return _token_ids(name, value)
    if name in _OTHERS:
        return _OTHERS[name](value)
    if name == "chat_template_kwargs" and not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a dictionary, got {type(value).__name__}")
    return value


def _is_greedy(given: Mapping[str, Any], defaults: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether to take the likeliest token each time.

    `do_sample` of the call decides; else any of temperature, top_k, top_p, min_p in the call asks for
    sampling; else `do_sample` of the checkpoint; else whether the checkpoint has values for those four.
    """
    if given.get("do_sample") and values["temperature"] == 0:
        raise ValueError("do_sample: True needs a temperature above 0")
    if values["temperature"] == 0:
        return True
    if "do_sample" in given:
        return not given["do_sample"]
    if any(name in given for name in _SHAPING):
        return False
    return not defaults.get("do_sample", any(name in defaults for name in _SHAPING))


def _sampling(values: Mapping[str, Any]) -> SamplingOptions:
    return SamplingOptions(
        temperature=values["temperature"],
        top_k=values["top_k"],
        top_p=values["top_p"],
        min_p=values["min_p"],
        repetition_penalty=values["repetition_penalty"],
        presence_penalty=values["presence_penalty"],
        frequency_penalty=values["frequency_penalty"],
        seed=secrets.randbits(32) if values["seed"] is None else values["seed"],
        logprobs=values["logprobs"],
        suppress=values["suppress_tokens"],
    )


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected a list of token ids, got {value!r}")
    ids = tuple(checks.integer(name, token_id) for token_id in value)
    if any(token_id < 0 for token_id in ids):
        raise ValueError(f"{name}: token ids are not negative, got {min(ids)}")
    return ids


def _stop_strings(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, Iterable):
        raise TypeError(f"stop: expected a string or a list of strings, got {value!r}")
    stops = tuple(stops)
    if not all(isinstance(stop, str) for stop in stops):
        raise TypeError(f"stop: expected a string or a list of strings, got {value!r}")
    if not all(stops):
        raise ValueError("stop: an empty string would stop at once")
    return stops


def _video_prompt(value: Any) -> Any:
    if value not in ("flat", "nested"):
        raise ValueError(f"video_prompt: expected 'flat' or 'nested', got {value!r}")
    return value


def on_full(value: Any) -> Any:
    """Return `value` if it is one of `OnFull`.

    Raises:
        ValueError: if it is not.
    """
    if value not in ("error", "shift"):
        raise ValueError(f"on_full: expected 'error' or 'shift', got {value!r}")
    return value


def keep_first(value: Any) -> int:
    """Return `value` if it is a whole number from 0."""
    return int(_RANGES["keep_first"].check("keep_first", value))


def _progress(value: Any) -> Any:
    if not isinstance(value, bool) and not callable(value):
        raise TypeError(f"progress: expected True, False or a function, got {value!r}")
    return value


def _cancel(value: Any) -> Any:
    if not callable(getattr(value, "is_set", None)):
        raise TypeError(f"cancel: expected an event, such as threading.Event(), got {value!r}")
    return value


_OTHERS: dict[str, Callable[[Any], Any]] = {
    "stop": _stop_strings,
    "images": inputs.image_list,
    "videos": inputs.video_list,
    "video_prompt": _video_prompt,
    "progress": _progress,
    "on_full": on_full,
    "cancel": _cancel,
}


def _suggestion(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
