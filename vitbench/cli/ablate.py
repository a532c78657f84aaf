"""`vitbench ablate`: what a choice is worth, against a reference, on the same support sets and test images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vitbench.cli.run import key_value, print_failures, refuse_empty, run, stops_told

EXAMPLES = """Examples:

`vitbench ablate --backbone timm:vit_base_patch16_224.augreg_in21k --tasks cifar10,oxford_pets
--over representation=cls,gap,pooler`

`vitbench ablate --backbone hf:facebook/dinov2-small --tasks cifar10 --over layer=gap --shots 10`

`vitbench ablate --backbone jax:B_16.npz --tasks cifar10 --over l2 --over dtype --reference float32`
"""

_OWN = ("on_existing", "quiet")
_SAID_BY = {
    "representation": "representations",
    "layer": "representations",
    "l2": "l2",
    "preprocess": "preprocess",
    "dtype": "dtype",
    "shots": "shots",
}
"""Axis to the option that would say the same thing."""


def _with_options_of_run(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb, in place of its `**settings`, the options of `vitbench run`, with their help and completion."""
    own = inspect.signature(verb, eval_str=True)
    mine = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    theirs = inspect.signature(run, eval_str=True).parameters.values()
    taken = {*_OWN, *(parameter.name for parameter in mine)}
    shared = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in theirs if parameter.name not in taken]
    verb.__signature__ = own.replace(parameters=[*mine, *shared])  # type: ignore[attr-defined]
    return verb


@_with_options_of_run
def ablate(
    *,
    over: Annotated[
        list[str],
        typer.Option(
            "--over",
            help="What varies: representation, layer, l2, resolution, preprocess, dtype or shots, with the usual levels, or "
            "NAME=v1,v2 with yours; repeats are crossed.",
        ),
    ],
    reference: Annotated[
        str | None, typer.Option(help="The level that others are compared with: the first you name, or the usual one.")
    ] = None,
    correction: Annotated[
        str, typer.Option(help="Of p-values for their number: holm, or fdr_bh (Benjamini-Hochberg).")
    ] = "holm",
    form: Annotated[str, typer.Option("--format", "-f", help="table, markdown, csv or json.")] = "table",
    plots: Annotated[Path | None, typer.Option(help="Folder of the pictures; OUT/ablations if not given.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    **settings: Any,
) -> None:
    """Vary one thing and keep the rest: runs what is missing, prints paired differences with intervals, draws them.

    The records are those of `vitbench run`, in the same folder: what either has made the other uses. All layers come from one
    forward pass, all penalties from one eigendecomposition.
    """
    from vitbench.cli.console import ConsoleReporter, console
    from vitbench.errors import unknown
    from vitbench.execution.ablation import ablate as carry_out
    from vitbench.execution.ablation_levels import parse_axes
    from vitbench.execution.config import make_config
    from vitbench.execution.reporter import Reporter
    from vitbench.records.provenance import command_line
    from vitbench.records.remote import told
    from vitbench.reporting.ablation_table import CORRECTIONS, FORMATS

    named = {"over": over, "reference": reference, "correction": correction, "format": form, "plots": plots}
    refuse_empty(settings | named)
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if correction not in CORRECTIONS:
        raise unknown("correction", correction, CORRECTIONS)
    axes = parse_axes(over)
    _refuse_both([axis.name for axis in axes], settings)
    config = make_config(_values(settings), settings["config"])
    reporter = Reporter() if quiet else ConsoleReporter()
    dry_run = settings["dry_run"]
    with stops_told():
        found = carry_out(config, axes, reporter, command_line(), reference=reference, dry_run=dry_run)
    if dry_run:
        _print_plan(found.result.planned)
    elif found.measurements:
        _print_report(found, correction, form, plots or config.out / "ablations")
        if not quiet:
            there = len(found.result.keys) - found.result.written
            line = f"{found.result.written} records written, {there} there already, in {told(config.out / 'records')}"
            console(stderr=True).print(line, markup=False, soft_wrap=True)
    if found.result.failures:
        known = not quiet and len(found.result.failures) == 1 and not found.result.planned
        print_failures(found.result.failures, known=known)
        raise typer.Exit(found.result.status)


def _values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of `vitbench run` say, as fields of a run's configuration."""
    from vitbench.execution.config import RunConfig, join_specs, split_list

    options: dict[str, Any] = dict(key_value(text) for text in settings["option"] or [])
    given = {name: ",".join(settings[name] or []) for name in ("shots", "seeds")} | {"l2": settings["l2"]}
    options |= {name: value for name, value in given.items() if value} | ({"tune": True} if settings["tune"] else {})
    data = dict(key_value(text, "--task-data") for text in settings["task_data"] or [])
    plain = {name: value for name, value in settings.items() if name in RunConfig.model_fields or name == "suite"}
    for name in ("tasks", "representations"):
        plain[name] = split_list(settings[name]) if settings[name] else None
    backbones = join_specs(settings["backbone"]) if settings["backbone"] else None
    return plain | {"backbones": backbones, "task_data": data or None, "options": options or None}


def _refuse_both(axes: list[str], settings: Mapping[str, Any]) -> None:
    """Refuse an option that says what an axis varies."""
    from vitbench.errors import UsageError

    for axis in axes:
        option = _SAID_BY.get(axis)
        if option is not None and settings[option]:
            values = settings[option] if isinstance(settings[option], str) else ",".join(settings[option])
            hint = f": write --over {axis}={values}" if axis != "layer" else ""
            raise UsageError(f"--over {axis} varies what --{option} {values} fixes{hint}")


def _print_plan(planned: list[Any]) -> None:
    from vitbench.cli.console import console, print_rows
    from vitbench.execution.plan import plan_rows

    print_rows(plan_rows(planned), as_json=False)
    images = {(job.backbone, job.task): job.images for job in planned}
    console().print(f"{sum(images.values()):,} images would go through a backbone")


def _print_report(found: Any, correction: str, form: str, folder: Path) -> None:
    """The table on standard output; where the pictures are on standard error, so that a table can be piped."""
    from typing import cast

    from vitbench.cli.console import console
    from vitbench.reporting.ablation import report
    from vitbench.reporting.ablation_plots import draw
    from vitbench.reporting.ablation_table import Correction, render, rich_tables

    shown = report(found, cast("Correction", correction))
    if form == "table":
        console().print(rich_tables(shown))
    else:
        typer.echo(render(shown, form))
    for path in draw(shown, folder):
        console(stderr=True).print(f"drawn: {path}", markup=False, soft_wrap=True)
