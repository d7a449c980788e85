"""Messages to the text of a prompt, through the checkpoint's chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.exceptions import SecurityError

from edgewise import sandbox
from edgewise._native import CheckpointError
from edgewise.checkpoints import Markers

if TYPE_CHECKING:
    from edgewise.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""One message in OpenAI's shape: `role` and `content`, perhaps `tool_calls` or `reasoning_content`."""

ReadFile = Callable[[str], bytes | None]
"""The bytes of a file that belongs to the checkpoint, `None` if there is no such file."""

THINK, END_THINK = "<think>", "</think>"
MESSAGE_START = "<|im_start|>"
"""Begins every message in the templates of this family."""
TOOL_RESPONSE = "<tool_response>"
"""Begins what a tool answered."""


class ChatTemplate:
    """A compiled chat template.

    Args:
        sources: the text of each template by name. `default` is the one for all purposes; `tool_use`, where
            there is one, is taken when tools are given.
        file: where they come from, for messages.
        special_tokens: further names a template may use, such as `eos_token`.

    Raises:
        CheckpointError: if a template is not valid Jinja.
    """

    def __init__(
        self, sources: Mapping[str, str], file: str, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        self._file = file
        self._special_tokens = dict(special_tokens or {})
        environment = sandbox.Environment()
        self._templates = {name: self._compile(environment, text) for name, text in sources.items()}
        if "default" not in self._templates:
            raise CheckpointError(f"{file}: there is no chat template named 'default'")

    @classmethod
    def read(cls, read_file: ReadFile) -> ChatTemplate | None:
        """Return the template of a checkpoint, `None` if it has none.

        It may stand in `chat_template.jinja`, in `tokenizer_config.json` or in `chat_template.json`; the
        first of these that has one counts.
        """
        config = read_json(read_file, "tokenizer_config.json")
        special_tokens = _special_tokens(config)
        text = read_file("chat_template.jinja")
        if text is not None:
            return cls({"default": _utf8(text, "chat_template.jinja")}, "chat_template.jinja", special_tokens)
        for file in ("tokenizer_config.json", "chat_template.json"):
            entry = read_json(read_file, file).get("chat_template")
            if entry is not None:
                return cls(_named_templates(entry, file), file, special_tokens)
        return None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return the prompt's text.

        Args:
            messages: the conversation, oldest message first.
            tools: functions the model may call, as JSON schemas in OpenAI's shape.
            enable_thinking: whether the model thinks before it answers. `None` leaves it to the template.
            add_generation_prompt: whether to end with the beginning of the assistant's answer.
            variables: further names this template knows, such as `add_vision_id`.

        Raises:
            ValueError: if the messages are malformed, or the template refuses them.
            CheckpointError: if the template itself is at fault.
        """
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        variables["messages"] = checked_messages(messages)
        variables["tools"] = _checked_tools(tools)
        variables["add_generation_prompt"] = add_generation_prompt
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        return self._render(self._templates[name], {"documents": None, **self._special_tokens, **variables})

    def _render(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        try:
            return sandbox.render(template, variables)
        except (sandbox.TemplateLimitError, SecurityError, RecursionError) as error:
            raise CheckpointError(f"{self._file}: {error}") from None
        except jinja2.UndefinedError as error:
            raise ValueError(f"messages: {self._file} cannot render them: {error}") from None
        except jinja2.TemplateError as error:  # the template's own `raise_exception`
            raise ValueError(f"messages: {error}") from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"messages: {self._file} cannot render them: {error}") from None

    def _compile(self, environment: sandbox.Environment, source: str) -> jinja2.Template:
        try:
            return environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"{self._file}: line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise CheckpointError(f"{self._file}: nested too deeply") from None


def read_json(read_file: ReadFile, file: str) -> dict[str, Any]:
    """Return the object in a JSON file of the checkpoint, empty if there is no such file.

    Raises:
        CheckpointError: if the file is not a JSON object.
    """
    data = read_file(file)
    return {} if data is None else parse_json(_utf8(data, file), file)


def parse_json(text: str, file: str) -> dict[str, Any]:
    """Return the object that is the text of a JSON file.

    Raises:
        CheckpointError: if it is none, or not for Python: nested too deeply, or an integer too long.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def markers(tokenizer: Tokenizer) -> Markers:
    """Return the tokens by which messages are found in a prompt."""
    start = tokenizer.token_to_id(MESSAGE_START)
    think, tool_response = tokenizer.token_to_id(THINK), tokenizer.token_to_id(TOOL_RESPONSE)
    if start is None:
        return Markers(None, think)
    system, user = ((start, *tokenizer.encode(role)) for role in ("system", "user"))
    return Markers(start, think, system, user, tool_response)


def starts_thinking(prompt: str) -> bool:
    """Whether an answer to `prompt` begins inside a thought that the prompt itself has opened."""
    return prompt.rstrip().endswith(THINK)


def split_reasoning(text: str, thinking: bool) -> tuple[str, str]:
    """Parts an answer into the thought and what is said after it.

    Args:
        text: the generated text.
        thinking: whether the prompt had already opened a thought, see `starts_thinking`.
    """
    opened, before, after = thinking, "", text
    if not thinking and text.lstrip().startswith(THINK):
        opened, after = True, text.lstrip()[len(THINK) :]
    if opened:
        before, _, after = after.partition(END_THINK)
    return before.strip(), after.strip()


def checked_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as dictionaries of their own, with parts and tool arguments as templates want them.

    Raises:
        TypeError: if `messages` is not a list of dictionaries.
        ValueError: if there are none, or one is malformed.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise TypeError(f"messages: expected a list of messages, got {type(messages).__name__}")
    checked = [_checked_message(index, message) for index, message in enumerate(messages)]
    if not checked:
        raise ValueError("messages: there must be at least one message")
    return checked


def _checked_message(index: int, message: Message) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise TypeError(f"{where}: expected a dictionary, got {type(message).__name__}")
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{where}: 'role' is missing or not a string")
    content = message.get("content")
    if content is None and message["role"] != "assistant":
        raise ValueError(f"{where}: 'content' is missing")
    if isinstance(content, Iterable) and not isinstance(content, str | Mapping):
        content = list(content)
        if not all(isinstance(part, Mapping) for part in content):
            raise ValueError(f"{where}: each part of 'content' must be a dictionary")
    elif content is not None and not isinstance(content, str):
        raise ValueError(f"{where}: 'content' is neither a string nor a list of parts")
    checked = {**message}
    if "content" in message:
        checked["content"] = content
    if message.get("tool_calls"):
        checked["tool_calls"] = [_checked_call(where, call) for call in message["tool_calls"]]
    return checked


def _checked_call(where: str, call: Any) -> dict[str, Any]:
    """Return a tool call with its arguments as a dictionary; in OpenAI's shape they are JSON in a string."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: a tool call needs a function with a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json_object(where, function["name"], arguments)
        function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else dict(function)


def _json_object(where: str, name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: the arguments of '{name}' are not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: the arguments of '{name}' are not a JSON object")
    return value


def _checked_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Iterable):
        raise TypeError(f"tools: expected a list of JSON schemas, got {type(tools).__name__}")
    checked = list(tools)
    for index, tool in enumerate(checked):
        if not isinstance(tool, Mapping):
            raise TypeError(f"tools[{index}]: expected a JSON schema, got {type(tool).__name__}")
    return [dict(tool) for tool in checked]


def _named_templates(entry: Any, file: str) -> dict[str, str]:
    """Return the `chat_template` entry of a file: one template, or a list of them with names."""
    if isinstance(entry, str):
        return {"default": entry}
    try:
        named = {str(item["name"]): item["template"] for item in entry}
    except (TypeError, KeyError):
        raise CheckpointError(
            f"{file}: 'chat_template' is neither a text nor a list of named texts"
        ) from None
    if not all(isinstance(text, str) for text in named.values()):
        raise CheckpointError(f"{file}: a template in 'chat_template' is not a text")
    return named


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        value = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _utf8(data: bytes, file: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: not UTF-8: {error}") from None
