"""What the package imports is what its project file declares: a clean installation lacks nothing."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULE_OF = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
OPTIONAL = {"jax": "jax", "lora": "peft", "ray": "ray"}
"""Extra to the module that it brings, where vitbench imports it."""
UNDER_ANOTHERS_NAME = {"tabulate": "pandas.to_markdown", "torchvision": "timm"}
"""Declared because a library that we call needs them for what we ask of it."""


def imported() -> set[str]:
    names: set[str] = set()
    for path in (ROOT / "vitbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"vitbench"}


def test_every_import_is_declared_and_every_declaration_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=!~\[ ]", text)[0].lower() for text in project["dependencies"]}
    modules = {MODULE_OF.get(name, name) for name in declared}
    assert imported() - modules - set(OPTIONAL.values()) == set()
    assert modules - imported() - set(UNDER_ANOTHERS_NAME) == set()
    for extra, module in OPTIONAL.items():
        assert module in {re.split(r"[<>=\[]", text)[0] for text in project["optional-dependencies"][extra]}
