"""What pydantic has to say of a wrong value, in one line: the field, what it takes, what it got, the nearest choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from vitbench.errors import nearest

_TEXTS = {
    "int_parsing": "takes a whole number",
    "int_type": "takes a whole number",
    "int_from_float": "takes a whole number",
    "float_parsing": "takes a number",
    "bool_parsing": "takes true or false",
    "string_type": "takes a text",
    "tuple_type": "takes a list",
    "dict_type": "takes a mapping",
    "too_short": "is empty",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "greater_than": "must be above {gt}",
    "less_than": "must be below {lt}",
}


def problem_text(problem: Mapping[str, Any]) -> str:
    """One of pydantic's problems as a clause that follows the field's name.

    Args:
        problem: An item of `ValidationError.errors()`.
    """
    kind, context, value = problem["type"], problem.get("ctx") or {}, problem["input"]
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    if kind == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    if kind in ("literal_error", "union_tag_invalid"):
        choices = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags")))
        got = context.get("tag", value)
        close = nearest(str(got), choices, count=1)
        return f"takes {', '.join(choices)}, got '{got}'{f'; did you mean {close[0]}?' if close else ''}"
    if kind == "too_short":
        return "is empty"
    text = _TEXTS.get(kind, f"{problem['msg'][0].lower()}{problem['msg'][1:]}").format(**context)
    return f"{text}, got {shown}"


def first_duplicate(node: yaml.Node | None) -> tuple[str, int] | None:
    """The first key that a YAML document gives twice in one mapping, and its 1-based line."""
    children: Iterable[yaml.Node] = ()
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                return key.value, key.start_mark.line + 1
            seen.add(key.value)
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    return next((found for child in children if (found := first_duplicate(child))), None)


def line_of(node: yaml.Node | None, location: Iterable[Any]) -> int:
    """The 1-based line of the deepest part of `location` that a YAML document has."""
    line = node.start_mark.line + 1 if node else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            match = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if match is None:
                break
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def yaml_problem(error: yaml.YAMLError) -> tuple[str, int | None]:
    """What is wrong with a YAML text, and its 1-based line where it is known."""
    mark = getattr(error, "problem_mark", None)
    return getattr(error, "problem", None) or str(error).splitlines()[0], mark.line + 1 if mark else None
