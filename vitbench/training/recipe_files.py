"""Where the recipes that ship with vitbench are."""

from __future__ import annotations

from pathlib import Path


def recipe_folders() -> list[Path]:
    """The folders that a recipe's name is looked up in: `recipes/` of a checkout, or what the wheel brought."""
    package = Path(__file__).resolve().parent.parent
    bundled = package / "_bundled" / "recipes"
    return [bundled if bundled.is_dir() else package.parent / "recipes"]
