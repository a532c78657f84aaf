"""Which records a question is about: those of an output folder, and the backbone that a name means among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import UsageError, VitbenchError, listed, unknown
from vitbench.records.index import read_records
from vitbench.records.schema import Record
from vitbench.records.store import read_record


@dataclass(frozen=True)
class Measured:
    """The records of an output folder.

    Attributes:
        folder: Where they lie.
        records: As `load_results` gives them, with one more column: `path`, the record's JSON file. No identity comes twice.
        provenance: `git_commit`, `python`, `versions` and `weights_notes` of each row of `records`.
        problems: Records that are damaged or contradict each other and so are left out, a line each.
    """

    folder: Path
    records: pd.DataFrame
    provenance: pd.DataFrame
    problems: tuple[str, ...]

    def check(self) -> None:
        """See that there is a record at all.

        Raises:
            UsageError: There is none; what is wrong with the first one is told.
        """
        if not len(self.records):
            why = (
                f"the first of {len(self.problems)} problems: {self.problems[0]}"
                if self.problems
                else "there are none yet"
            )
            raise UsageError(f"there are no records to use at {self.folder} ({why})")


def read_measured(folder: Path) -> Measured:
    """Read every record below `folder` together with its path.

    A record that lies there twice counts once. Two records of one identity with different scores are a conflict: neither is
    used, for nobody can say which of them is right.

    Raises:
        UsageError: There is no such folder, or it holds no run.
    """
    reading = read_records(folder)
    records, problems = reading.frame, list(reading.damaged)
    copied = records[records["key"].duplicated(keep=False)]
    contradict = []
    for key, copies in copied.groupby("key", sort=False):
        found = [(path, read_record(path)) for path in copies["path"]]
        if any(record.scores != found[0][1].scores for _, record in found[1:]):
            problems.append(_conflict(found))
            contradict.append(key)
    kept = records[~records["key"].duplicated() & ~records["key"].isin(contradict)]
    provenance = reading.provenance.loc[kept.index].reset_index(drop=True)
    return Measured(folder, kept.reset_index(drop=True), provenance, tuple(problems))


def _conflict(copies: Sequence[tuple[Path, Record]]) -> str:
    scores = {100 * record.scores.get(record.metric, float("nan")) for _, record in copies}
    told = " and ".join(f"{score:.4g} %" for score in sorted(scores))
    where = " and ".join(str(path) for path, _ in copies[:2])
    record = copies[0][1]
    return (
        f"{len(copies)} records of one identity ({record.backbone} · {record.representation} · {record.task}, "
        f"shot {record.shot}, seed {record.seed}) have different scores ({told}): neither is used; find out which is right "
        f"and move the other away: {where}"
    )


def chosen(
    records: pd.DataFrame,
    *,
    tasks: Sequence[str] = (),
    shots: Sequence[int] = (),
    protocol: str | None = None,
    representations: Sequence[str] = (),
    seeds: Sequence[int] = (),
    limited: bool = False,
) -> pd.DataFrame:
    """The records that pass every filter; an empty filter lets all pass.

    Args:
        records: Of `Measured`.
        tasks: Full names.
        shots: 0 stands for all train images.
        protocol: Its name.
        representations: Their names.
        seeds: Of the support sets.
        limited: Limited runs in place of full ones; the two are never mixed.

    Raises:
        UsageError: None is left; the filter that lets none pass is named with what there is.
    """
    if not len(records):
        raise UsageError("there are no records yet: make some with `vitbench run`")
    left = records[records["limit"].notna() if limited else records["limit"].isna()]
    if not len(left):
        kind = "full" if limited else "limited; take them with --limited"
        raise UsageError(f"all {len(records)} records are {kind}")
    filters: list[tuple[str, Sequence[object]]] = [
        ("protocol", [protocol] if protocol else []),
        ("task", tasks),
        ("representation", representations),
        ("shot", shots),
        ("seed", seeds),
    ]
    for column, wanted in filters:
        there = sorted(left[column].unique())
        if not wanted or any(value in there for value in wanted):
            left = left[left[column].isin(list(wanted))] if wanted else left
        elif isinstance(wanted[0], str):
            raise unknown(f"{column} among the records:", wanted[0], there)
        else:
            asked = ", ".join(map(str, wanted))
            raise UsageError(f"no record has {column} {asked}; there are {listed(map(str, there), most=12)}")
    return left


@dataclass(frozen=True)
class Filters:
    """Which records are compared; what is empty lets all pass.

    Attributes:
        tasks: Names, suites or globs.
        shots: 0 stands for all train images.
        protocol: Its name.
        representations: Their names.
        limited: Limited runs in place of full ones.
    """

    tasks: Sequence[str] = ()
    shots: Sequence[int] = ()
    protocol: str | None = None
    representations: Sequence[str] = ()
    limited: bool = False

    def of(self, records: pd.DataFrame, tasks: Sequence[str], side: str) -> pd.DataFrame:
        """The records of one side that pass."""
        try:
            return chosen(
                records,
                tasks=tasks,
                shots=self.shots,
                protocol=self.protocol,
                representations=self.representations,
                limited=self.limited,
            )
        except UsageError as error:
            raise UsageError(f"{side}: {error}") from error


def match_backbone(asked: str, records: pd.DataFrame, *, side: str = "") -> tuple[pd.DataFrame, str | None]:
    """The records of the backbone that a name means, and the representation that is named behind it.

    Args:
        asked: A spec as it was written, or its label without options and folders where that is one backbone's; with
            `/REPRESENTATION` behind it only the records of that one.
        records: What is chosen from.
        side: What is told in front of a mistake, such as `A`.

    Raises:
        UsageError: It means none of them (the nearest are offered), several, or lacks the representation.
    """
    before = f"{side}: " if side else ""
    if len(found := _named(asked, records, before)):
        return found, None
    name, slash, representation = asked.rpartition("/")
    if slash and len(found := _named(name, records, before)):
        offered = sorted(found["representation"].unique())
        if representation not in offered:
            raise unknown(f"representation of {name} among the records:", representation, offered)
        return found[found["representation"] == representation], representation
    models = records[["backbone", "representation"]].drop_duplicates()
    offered = [
        f"{label}/{own}" if slash else label
        for spec, own in models.itertuples(index=False)
        for label in (spec, _labels(spec)[0])
    ]
    # Where a representation hangs on a wrong name, it must not make it less like the right one.
    raise unknown(f"backbone {side}".rstrip() + " among the records:", asked, dict.fromkeys(offered))


def _named(asked: str, records: pd.DataFrame, before: str) -> pd.DataFrame:
    """The records whose backbone is called `asked`; none, or those of one backbone."""
    exact = records[records["backbone"] == asked.strip()]
    if len(exact):
        return exact
    labels = {spec: _labels(spec) for spec in records["backbone"].unique()}
    found = records[records["backbone"].map(lambda spec: asked.strip() in labels[spec])]
    models = found.drop_duplicates(["architecture", "weights"])
    if len(models) > 1:
        specs = listed(sorted(found["backbone"].unique()))
        raise UsageError(f"{before}'{asked}' means {len(models)} backbones: write one of their specs in full: {specs}")
    return found


def backbone_label(spec: str) -> str:
    """A spec with its options but without folders, short enough for a title."""
    return _labels(spec)[-1]


def _labels(spec: str) -> tuple[str, ...]:
    """What a backbone may be called besides its spec, the shortest first."""
    try:
        parsed = parse_backbone_spec(spec)
    except VitbenchError:
        return (spec,)
    return (parsed.label, parsed.long_label)
