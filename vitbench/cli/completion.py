"""Shell completion of names."""

from __future__ import annotations


def complete_task(incomplete: str) -> list[str]:
    """Tasks and suites that begin with what was typed after the last comma."""
    from vitbench.tasks.catalog import suites, task_files

    before, comma, last = incomplete.rpartition(",")
    short = [name.split("/")[-1] for name in task_files()]
    names = [*task_files(), *suites(), *(name for name in short if short.count(name) == 1)]
    return [before + comma + name for name in dict.fromkeys(names) if name.startswith(last)]


def complete_backbone(incomplete: str) -> list[str]:
    """Backbone kinds; after `timm:` the names of its pretrained models."""
    from vitbench.backbones import BACKBONES

    if not incomplete.startswith("timm:"):
        kinds = [name if name == "pixels" else f"{name}:" for name in BACKBONES.names()]
        return [kind for kind in kinds if kind.startswith(incomplete)]
    import timm

    return [f"timm:{name}" for name in timm.list_models(f"{incomplete.removeprefix('timm:')}*", pretrained=True)]


def complete_format(incomplete: str) -> list[str]:
    """Formats of a leaderboard."""
    return [form for form in ("table", "markdown", "csv", "json", "html", "latex") if form.startswith(incomplete)]
