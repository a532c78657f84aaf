"""What pydantic has to say of a wrong value, in one line: the field, what it takes, what it got, the nearest choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vitbench.errors import VitbenchError, first_line, nearest

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
    own = _TEXTS.get(kind)
    text = own.format(**context) if own else f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
    return f"{text}, got {shown}"


def first_duplicate(node: yaml.Node | None) -> tuple[str, int] | None:
    """The first key that a YAML document gives twice in one mapping, and its 1-based line."""
    children: Iterable[yaml.Node] = ()
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
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


def read_yaml(path: Path, error: type[VitbenchError]) -> tuple[Any, yaml.Node | None]:
    """Read a YAML file: its data, and its document for the lines of messages.

    Raises:
        FileNotFoundError: There is no such file.
        VitbenchError: Of the class `error`: the file cannot be read, is no YAML (its line is named), or gives a key twice.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # both build plain data only; the first is ten times as fast
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        if trap := _trap(text, loader):
            raise error(f"{path}:{trap[1]}: {trap[0]}")
        parser = loader(text)
        root: yaml.Node | None = parser.get_single_node()
        if twice := first_duplicate(root):
            raise error(f"{path}:{twice[1]}: the field '{twice[0]}' is given twice")
        return (parser.construct_document(root) if root else None), root
    except yaml.YAMLError as problem:
        reason, line = yaml_problem(_clearer(text, problem))
        raise error(f"{path}{f':{line}' if line else ''}: not valid YAML: {reason}") from problem
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path} cannot be read: {first_line(problem)}") from problem
    except (TypeError, ValueError, OverflowError) as problem:
        # A date of a thirteenth month, a number of thousands of digits: YAML's own constructors let these through.
        raise error(f"{path}: a value cannot be read: {first_line(problem)}") from problem


_DEEPEST = 50


def _trap(text: str, loader: Any) -> tuple[str, int] | None:
    """What of a YAML text could fill memory or the stack though it is short, and its line: aliases, and lists without end."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            return f"aliases are not read here: write out what '*{event.anchor}' stands for", line
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            return f"lists and mappings are nested more than {_DEEPEST} deep", line
    return None


def user_path(text: str, error: type[VitbenchError]) -> Path:
    """A path as a user writes it, `~` expanded.

    Raises:
        VitbenchError: Of the class `error`: it names a user who is not there, or is no path at all.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as problem:
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        raise error(f"{shown!r} is no path: {first_line(problem)}") from problem
    return path


def _clearer(text: str, problem: yaml.YAMLError) -> yaml.YAMLError:
    """The same mistake as the slow parser tells it, which names the character and the line better."""
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as clear:
        return clear
    return problem
