"""The Jinja environment chat templates run in: the names they expect, and nothing that can do harm.

A template comes with a checkpoint, so it is not trusted. Attributes that lead out of the data are closed by
Jinja's own sandbox; here the amount of work and of text is limited too.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_CHARACTERS = 64 * 2**20
MAX_STEPS = 1_000_000
MAX_EXPONENT = 64


class TemplateLimitError(Exception):
    """A template wants more work or text than any prompt needs."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant said, for training. For a prompt it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  (declared so by the base class)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment that transformers renders chat templates in, with limits."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
        )
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left * right` or `left ** right`, unless the result would be huge."""
        if operator == "**" and (abs(right) > MAX_EXPONENT or abs(left) > 2**MAX_EXPONENT):
            raise TemplateLimitError("the numbers in a power are too large")
        if operator == "*" and _product_length(left, right) > MAX_CHARACTERS:
            raise TemplateLimitError(f"a text or list is longer than {MAX_CHARACTERS}")
        return super().call_binop(context, operator, left, right)


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """Return the text of `template`.

    Raises:
        TemplateLimitError: if it loops or writes too much.
    """
    pieces, characters = [], 0
    for piece in template.generate(variables, range=_LimitedRange()):
        characters += len(piece)
        if characters > MAX_CHARACTERS:
            raise TemplateLimitError(f"the text is longer than {MAX_CHARACTERS} characters")
        pieces.append(piece)
    return "".join(pieces)


class _LimitedRange:
    """`range` for one rendering: all ranges together have at most `MAX_STEPS` numbers."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def __call__(self, *limits: int) -> range:
        numbers = range(*limits)
        self._left -= len(numbers)
        if self._left < 0:
            raise TemplateLimitError(f"more than {MAX_STEPS} steps of a loop")
        return numbers


def _product_length(left: Any, right: Any) -> int:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | bytes | list | tuple) and isinstance(times, int):
            return len(value) * times
    return 0


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter would escape `<`, `>` and `&` for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
