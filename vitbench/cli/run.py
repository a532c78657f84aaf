"""`vitbench run`: score backbones on tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitbench.cli.completion import complete_backbone, complete_task
from vitbench.registry import uncollected

if TYPE_CHECKING:
    from vitbench.execution.config import RunConfig

FINETUNING = "Fine-tuning"
EPISODES = "Episodes and nearest neighbours"
CLUSTER = "Several workers: a server with several GPUs, or a cluster"

EXAMPLES = """Examples:

`vitbench run`

`vitbench run --backbone timm:vit_base_patch16_224.augreg_in21k --tasks cifar10,oxford_pets
--representations cls,gap,pooler --shots 1,5,10,25 --seeds 3`

`vitbench run --backbone jax:ViT-B_16.npz --tasks imagefolder:./shoes --l2 loo`

`vitbench run --backbone hf:google/vit-base-patch16-224-in21k --suite vtab --tune`

`vitbench run --backbone hf:facebook/dinov2-small --tasks cifar100 --protocol knn --k 1,5,20`

`vitbench run --backbone hf:google/vit-base-patch16-224-in21k --tasks cifar100 --recipe paper --set learning_rate=0.03`

`vitbench run --backbone hf:./checkpoint --suite vtab --executor ray --address auto --budget 8h`

`vitbench run --tasks imagefolder:./birds --protocol episodes --way 5 --shot 1,5 --queries 15 --episodes 600`
"""


def run(
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone", "-b", help="KIND:NAME[@REVISION][,key=value…]; repeatable.", autocompletion=complete_backbone
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            "--task",
            "-t",
            help="Names, suites, globs, task files, imagefolder:PATH; commas or repeats.",
            autocompletion=complete_task,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="A suite with its own way of evaluation (vtab: ridge on train800val200, preset vtab); "
            "sets tasks, protocol and preprocessing where they are not given."
        ),
    ] = None,
    representations: Annotated[
        list[str] | None,
        typer.Option(
            "--representations", "-r", help="cls, gap, pooler, cls+gap, gap@6, …; all trained ones if not given."
        ),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Protocol; see `vitbench ls protocols`.")] = None,
    shots: Annotated[
        list[str] | None, typer.Option("--shots", "--shot", help="Images per class, such as 1,5,10,25.")
    ] = None,
    seeds: Annotated[
        list[str] | None, typer.Option(help="A number of seeds (3 is 0,1,2), or a list such as 0,7.")
    ] = None,
    l2: Annotated[
        str | None,
        typer.Option(
            help="paper (1024), loo (leave-one-out on what is learned from), a number; ridge also takes gcv and validation."
        ),
    ] = None,
    way: Annotated[int | None, typer.Option(help="Classes of an episode.", rich_help_panel=EPISODES)] = None,
    queries: Annotated[
        int | None, typer.Option(help="Images of each class that an episode classifies.", rich_help_panel=EPISODES)
    ] = None,
    episodes: Annotated[int | None, typer.Option(help="How many episodes are drawn.", rich_help_panel=EPISODES)] = None,
    k: Annotated[
        list[str] | None,
        typer.Option("--k", help="Neighbours that vote, such as 1,5,20 (protocol knn).", rich_help_panel=EPISODES),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Choose l2 (ridge) or a recipe of the grid (finetune) on images that are never the test's."
        ),
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another option of the protocol, or a field of the recipe, KEY=VALUE; repeatable."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="How to fine-tune: a name (`vitbench ls recipes`) or a YAML file; implies --protocol finetune.",
            rich_help_panel=FINETUNING,
        ),
    ] = None,
    checkpoint_steps: Annotated[
        int | None, typer.Option(help="Updates between checkpoints, beside the minutes.", rich_help_panel=FINETUNING)
    ] = None,
    checkpoint_minutes: Annotated[
        float | None, typer.Option(help="Minutes between checkpoints; 10.", rich_help_panel=FINETUNING)
    ] = None,
    keep_checkpoints: Annotated[
        int | None, typer.Option(help="Checkpoints that are kept while it trains; 2.", rich_help_panel=FINETUNING)
    ] = None,
    trackers: Annotated[
        list[str] | None,
        typer.Option(
            "--tracker",
            help="tensorboard, wandb, mlflow or none; TensorBoard where it is installed.",
            rich_help_panel=FINETUNING,
        ),
    ] = None,
    save_models: Annotated[
        bool | None,
        typer.Option("--save-models/--no-save-models", help="Keep the trained weights.", rich_help_panel=FINETUNING),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            help="auto, task, bigvision_fewshot, bigvision_transfer, vit_jax, vtab, or a preprocessing string."
        ),
    ] = None,
    train_split: Annotated[
        str | None, typer.Option(help="Learn from this split, such as train800 or 'train[:90%]'.")
    ] = None,
    test_split: Annotated[str | None, typer.Option(help="Score this split.")] = None,
    task_data: Annotated[
        list[str] | None,
        typer.Option("--task-data", help="TASK=PATH: read the task's data from a folder of your own; repeatable."),
    ] = None,
    accept_sizes: Annotated[
        bool | None,
        typer.Option("--accept-sizes", help="Take splits of another size than expected; records say so."),
    ] = None,
    offline: Annotated[
        bool | None, typer.Option("--offline", help="Use only what has been fetched; ask the hub nothing.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    features_dtype: Annotated[
        str | None,
        typer.Option(
            "--features-dtype", help="float32, or float16: half the feature store; kept apart from float32 results."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Images per forward pass, or auto.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that decode images; in training processes.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Score only this many test images; kept apart from full results.")
    ] = None,
    allow_untrained: Annotated[
        bool | None, typer.Option("--allow-untrained", help="Score newly initialised weights too, marked as untrained.")
    ] = None,
    on_existing: Annotated[
        str | None, typer.Option(help="skip, rerun or error, for records that are there already.")
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            help="local, ray, or auto: ray where there are several GPUs or an --address, else this process.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster: auto (the one of this machine), HOST:PORT or ray://HOST:PORT; this machine alone if not given.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    gpus_per_job: Annotated[
        float | None,
        typer.Option(help="GPUs of one job, 0.5 for two jobs on one; 1 where there are any.", rich_help_panel=CLUSTER),
    ] = None,
    cpus_per_job: Annotated[
        int | None,
        typer.Option(
            help="CPU cores of one job; a GPU's share of them, else up to 4, half the cores where one job would have them all.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    max_failures: Annotated[
        int | None,
        typer.Option(help="How often work whose worker was lost is given to another; 2.", rich_help_panel=CLUSTER),
    ] = None,
    timeout_per_job: Annotated[
        str | None,
        typer.Option(
            help="How long one piece of a job may take, such as 90s or 2h, before it counts as hanging; no limit if not given.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    writer: Annotated[
        str | None,
        typer.Option(
            help="Who writes features and trainings: driver, workers, or auto: workers where all see the output folder.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="How long the run may take, such as 30m: seeds, then shots, then tasks are left out to fit."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output folder; results/runs if not given.")] = None,
    config: Annotated[Path | None, typer.Option(help="A run written as YAML; the options here override it.")] = None,
    profile: Annotated[
        bool | None,
        typer.Option(
            "--profile", help="Print where the time went, stage by stage, and write a trace below OUT/profile."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no leaderboard.")] = False,
) -> None:
    """Score backbones on tasks: frozen features in one pass, few-shot by closed-form ridge, records, a leaderboard.

    What is already there is used again, so the same command goes on after an interruption. Without options it scores the
    demo backbone and the pixels on the built-in tasks, which needs no network.
    """
    resolved = configuration(locals())
    with uncollected(kept=True):
        from vitbench.cli.console import ConsoleReporter, console
        from vitbench.cli.run_tables import print_leaderboard, print_plan, print_profile
        from vitbench.execution.execute import execute
        from vitbench.execution.reporter import Reporter
        from vitbench.records.provenance import command_line
        from vitbench.records.remote import told

    reporter = Reporter() if quiet else ConsoleReporter()
    with stops_told():
        result = execute(resolved, reporter, command_line(), dry_run=dry_run)
    if dry_run:
        print_plan(result)
    elif result.keys and not quiet:
        print_leaderboard(resolved.out, result.keys)
        there = len(result.keys) - result.written
        console().print(
            f"{result.written} records written, {there} there already, in {told(resolved.out / 'records')}",
            soft_wrap=True,
        )
    if result.profile is not None:
        print_profile(result.profile, result.trace)
    if result.failures:
        print_failures(result.failures, known=not quiet and len(result.failures) == 1 and not result.planned)
        raise typer.Exit(result.status)


def configuration(parameters: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from the parameters of `run`, by their names.

    Raises:
        UsageError: A value is empty or cannot be meant.
    """
    from vitbench.execution.config import RunConfig, join_specs, make_config, split_list

    refuse_empty(parameters)
    chosen = {name: ",".join(parameters[name] or []) for name in ("shots", "seeds", "k")}
    chosen |= {name: parameters[name] for name in ("l2", "way", "queries", "episodes")}
    options: dict[str, Any] = dict(key_value(text) for text in parameters["option"] or [])
    options |= {name: value for name, value in chosen.items() if value not in (None, "")}
    options |= {"tune": True} if parameters["tune"] else {}
    if parameters["recipe"]:
        options["recipe"] = parameters["recipe"]
        parameters = {**parameters, "protocol": parameters["protocol"] or "finetune"}
    lists = {
        name: split_list(parameters[name]) for name in ("tasks", "representations", "trackers") if parameters[name]
    }
    plain = {name: value for name, value in parameters.items() if name in {*RunConfig.model_fields, "suite"}}
    values = {
        **plain,
        **lists,
        "backbones": join_specs(parameters["backbone"]) if parameters["backbone"] else None,
        "options": options or None,
        "task_data": places(parameters["task_data"]) or None,
    }
    return make_config(values, parameters["config"])


@contextmanager
def stops_told() -> Iterator[None]:
    """A run that is stopped inside is told in one line, and ends with the status that says what stopped it."""
    from vitbench.cli.console import console
    from vitbench.errors import StoppedError

    try:
        yield
    except StoppedError as stopped:
        console(stderr=True).print(str(stopped), markup=False, soft_wrap=True)
        raise typer.Exit(stopped.status) from None
    except KeyboardInterrupt:
        console(stderr=True).print("interrupted: run the same command again to go on from here")
        raise typer.Exit(130) from None


def print_failures(failures: list[str], known: bool) -> None:
    """What failed, once more at the end, unless that was told just now and nothing besides."""
    from vitbench.cli.console import console

    error = console(stderr=True)
    if not known:
        error.print(f"[bold red]{len(failures)} failed:[/bold red]")
        for failure in failures:
            error.print(f"  {failure}", markup=False, soft_wrap=True)


def refuse_empty(options: Mapping[str, Any]) -> None:
    """Refuse an option whose value is empty: most often a script's variable that was not set; and a URL where a path belongs.

    Args:
        options: Parameter name to value.

    Raises:
        UsageError: One is empty, or is a URL and names no output folder; it is named.
    """
    from vitbench.errors import UsageError
    from vitbench.records.remote import refuse_url

    for name, value in options.items():
        given = value if isinstance(value, list) else [value]
        if isinstance(value, Path) and name not in ("out", "results"):
            refuse_url(value, f"--{name.replace('_', '-')}")
        if any((isinstance(item, str) and not item.strip(" ,")) or item == Path() for item in given):
            raise UsageError(f"--{name.replace('_', '-')} is empty")


def key_value(text: str, option: str = "--set") -> tuple[str, str]:
    """Split one `KEY=VALUE` of an option that may be repeated.

    Raises:
        UsageError: It is not of that form.
    """
    from vitbench.errors import UsageError

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{option} '{text}' is not of the form KEY=VALUE")
    return key.strip(), value.strip()


def places(texts: Sequence[str] | None) -> dict[str, str]:
    """The values of `--task-data`: task to folder.

    Raises:
        UsageError: One is not of the form TASK=PATH, has no path, or names a task that another names too.
    """
    from vitbench.errors import UsageError

    found: dict[str, str] = {}
    for text in texts or ():
        task, path = key_value(text, "--task-data")
        if not path:
            raise UsageError(f"--task-data '{text}' names no folder: write {task}=PATH")
        if task in found:
            raise UsageError(f"--task-data names '{task}' twice: {found[task]} and {path}")
        found[task] = path
    return found
