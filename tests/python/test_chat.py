"""Chat templates: where they are found, what they may use, what they may not do."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from edgewise import ChatTemplate, CheckpointError
from edgewise.chat import split_reasoning, starts_thinking

USER = {"role": "user", "content": "Hi"}
EACH = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"


def template(source: str, **special_tokens: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, "chat_template.jinja", special_tokens)


def read(**files: Any) -> ChatTemplate | None:
    stored = {name.replace("__", "."): value for name, value in files.items()}
    return ChatTemplate.read(lambda name: stored.get(name))


def test_the_template_file_comes_before_the_entry_of_a_configuration() -> None:
    config = json.dumps({"chat_template": "config"}).encode()
    found = read(chat_template__jinja=b"file", tokenizer_config__json=config)
    assert found is not None
    assert found.render([USER]) == "file"
    found = read(tokenizer_config__json=config, chat_template__json=b'{"chat_template": "other"}')
    assert found is not None
    assert found.render([USER]) == "config"
    found = read(tokenizer_config__json=b"{}", chat_template__json=b'{"chat_template": "other"}')
    assert found is not None
    assert found.render([USER]) == "other"
    assert read() is None


def test_named_templates() -> None:
    entry = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    found = read(tokenizer_config__json=json.dumps({"chat_template": entry}).encode())
    assert found is not None
    assert found.render([USER]) == "plain"
    assert found.render([USER], tools=[{"name": "f"}]) == "tools"


def test_special_tokens_are_known_to_the_template() -> None:
    config = {"eos_token": {"content": "</s>"}, "bos_token": None}
    found = read(
        chat_template__jinja=b"{{ eos_token }}{{ bos_token is defined }}",
        tokenizer_config__json=json.dumps(config).encode(),
    )
    assert found is not None
    assert found.render([USER]) == "</s>False"


def test_enable_thinking_is_undefined_unless_given() -> None:
    source = "{{ enable_thinking is defined }} {{ enable_thinking }}"
    assert template(source).render([USER]) == "False "
    assert template(source).render([USER], enable_thinking=False) == "True False"


def test_further_variables_reach_the_template() -> None:
    assert template("{{ add_vision_id }}").render([USER], add_vision_id=True) == "True"


def test_tojson_keeps_letters_order_and_markup() -> None:
    value = {"z": "é<&>'", "a": [1.0, None, True]}
    assert template("{{ v | tojson }}").render([USER], v=value) == json.dumps(value, ensure_ascii=False)
    assert template("{{ v | tojson(indent=1) }}").render([USER], v=[1]) == "[\n 1\n]"


def test_whitespace_loops_and_generation_blocks() -> None:
    source = """
    {%- for m in messages %}
        {%- if loop.index == 2 %}{% break %}{% endif %}
        {% generation %}
{{ m.content }}
        {% endgeneration %}
    {% endfor %}
"""
    assert template(source).render([USER, USER]) == "Hi\n"


def test_strftime_now() -> None:
    year = str(datetime.datetime.now().year)
    assert template("{{ strftime_now('%Y') }}").render([USER]) == year


def test_a_refusal_of_the_template_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^messages: no cats$") as caught:
        template("{{ raise_exception('no cats') }}").render([USER])
    assert not isinstance(caught.value, CheckpointError)


@pytest.mark.parametrize("source", ["{% if %}", "{% for %}", "{{ a | nosuchfilter }}", "{{ '" + "{%" * 3])
def test_a_broken_template_is_named(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: line \d"):
        template(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{% for a in range(1000000000) %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'a' * 10000000000 }}",
        "{{ 10 ** 1000000000 }}",
        "{% set a = 'a' * 1000000 %}{% for i in range(100) %}{{ a }}{% endfor %}",
    ],
)
def test_a_template_cannot_leave_the_sandbox_or_run_wild(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        template(source).render([USER])


@pytest.mark.parametrize(
    "source", ["{{ m.a.b }}", "{{ 1 / 0 }}", "{{ 1 + 'a' }}", "{{ messages[0]|items(1) }}"]
)
def test_other_faults_are_reported_with_the_file(source: str) -> None:
    with pytest.raises(ValueError, match=r"chat_template\.jinja cannot render"):
        template(source).render([USER])


@pytest.mark.parametrize(
    ("file", "data", "reason"),
    [
        ("tokenizer_config__json", b"{", "not valid JSON"),
        ("tokenizer_config__json", b'{"a": ' + b"1" * 4301 + b"}", "not valid JSON: Exceeds the limit"),
        ("tokenizer_config__json", b"[]", "expected a JSON object, got list"),
        ("tokenizer_config__json", b"\xff", "not UTF-8"),
        ("tokenizer_config__json", b'{"chat_template": 5}', "neither a text nor a list"),
        ("tokenizer_config__json", b'{"chat_template": [{"name": "default"}]}', "neither a text nor a list"),
        ("tokenizer_config__json", b'{"chat_template": [{"name": "default", "template": 1}]}', "not a text"),
        ("tokenizer_config__json", b'{"chat_template": []}', "no chat template named 'default'"),
        ("chat_template__jinja", b"\xff", "not UTF-8"),
    ],
)
def test_unusable_files_are_named(file: str, data: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=file.replace("__", r"\.") + ".*" + reason):
        read(**{file: data})


@pytest.mark.parametrize(
    ("messages", "error", "reason"),
    [
        ([], ValueError, "at least one message"),
        ("Hi", TypeError, "expected a list of messages, got str"),
        ({"role": "user", "content": "Hi"}, TypeError, "expected a list of messages, got dict"),
        (["Hi"], TypeError, r"messages\[0\]: expected a dictionary, got str"),
        ([USER, {"content": "Hi"}], ValueError, r"messages\[1\]: 'role'"),
        ([{"role": 1, "content": "Hi"}], ValueError, r"messages\[0\]: 'role'"),
        ([{"role": "user"}], ValueError, r"messages\[0\]: 'content' is missing"),
        ([{"role": "user", "content": 1}], ValueError, "neither a string nor a list"),
        ([{"role": "user", "content": {"text": "Hi"}}], ValueError, "neither a string nor a list"),
        ([{"role": "user", "content": ["Hi"]}], ValueError, "each part of 'content'"),
    ],
)
def test_malformed_messages(messages: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        template(EACH).render(messages)


@pytest.mark.parametrize("tools", ["f", {"name": "f"}, [1], 5])
def test_malformed_tools(tools: Any) -> None:
    with pytest.raises(TypeError, match=r"^tools"):
        template(EACH).render([USER], tools=tools)


CALLS = (
    "{% for c in messages[1].tool_calls %}"
    "{% for k, v in c.function.arguments|items %}{{k}}={{v}} {% endfor %}{% endfor %}"
)


def call(arguments: Any, name: Any = "f") -> list[dict[str, Any]]:
    function = {"name": name, "arguments": arguments}
    return [USER, {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}]


def test_arguments_of_a_tool_call_may_be_json_in_a_string() -> None:
    messages = call('{"b": 1, "a": "x"}')
    assert template(CALLS).render(messages) == "b=1 a=x "
    assert messages == call('{"b": 1, "a": "x"}'), "the caller's messages stay as they were"
    assert template(CALLS).render(call("")) == ""
    assert template(CALLS).render(call({"a": 1e20})) == "a=1e+20 "


@pytest.mark.parametrize("arguments", ["{", "[1]", "5", "1" * 4301, "[" * 100_000])
def test_arguments_that_are_no_json_object(arguments: str) -> None:
    with pytest.raises(ValueError, match=r"messages\[1\]: the arguments of 'f' are not"):
        template(CALLS).render(call(arguments))


def test_a_tool_call_without_a_name() -> None:
    with pytest.raises(ValueError, match=r"messages\[1\]: a tool call needs a function with a name"):
        template(CALLS).render(call({}, name=None))


@pytest.mark.parametrize(
    ("text", "thinking", "parts"),
    [
        ("Hm.\n</think>\n\nYes.", True, ("Hm.", "Yes.")),
        ("<think>\nHm.\n</think>\n\nYes.", False, ("Hm.", "Yes.")),
        ("Hm.", True, ("Hm.", "")),
        ("Yes.", False, ("", "Yes.")),
        ("", True, ("", "")),
        ("a</think>b</think>c", True, ("a", "b</think>c")),
    ],
)
def test_split_reasoning(text: str, thinking: bool, parts: tuple[str, str]) -> None:
    assert split_reasoning(text, thinking) == parts


def test_starts_thinking() -> None:
    assert starts_thinking("<|im_start|>assistant\n<think>\n")
    assert not starts_thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n")
