"""The labels of a leaderboard's rows and columns: short, but never the same for two things that differ."""

from __future__ import annotations

import hashlib
import re
import string

import pandas as pd

from vitbench.backbones.spec import parse_backbone_spec
from vitbench.errors import VitbenchError

ROW_FIELDS = ["architecture", "weights", "preprocessing", "dtype", "representation"]
"""What makes two records the same row; how a backbone's spec was spelled does not."""

DATA_FIELDS = ["train_fingerprint", "test_fingerprint", "num_classes", "identity_version"]
"""What makes two records of one task's name the same column."""

ROW_LABELS = ["backbone", "shown", "variant"]
"""The labels of a row, as `labelled` makes them."""

SETTING = "setting"
"""One more label of a row where protocols stand side by side; see `vitbench.reporting.side_by_side`."""

DEVIATES, SYNTHETIC = "†", "‡"


def shot_label(shot: int, learned: float | None = None) -> str:
    """A shot in words: shot 0 is a protocol that draws nothing and learns from the whole train split, or from nothing at all.

    Args:
        shot: Images per class.
        learned: Number of images that were learned from (`n_support`), where it is known.
    """
    if shot:
        return f"{shot}-shot"
    return "no training" if learned == 0 else "all train images"


def in_episodes(records: pd.DataFrame) -> pd.Series:
    """Which records score episodes: their unit is the episode, and `n_test` counts queries, in which an image may come again."""
    return records["episodes"].notna() if "episodes" in records else pd.Series(False, index=records.index)


def setting_title(label: str, subject: str) -> str:
    """A protocol's label and what a table is about, for its title.

    What draws classes says how many at the beginning of its label, and is read in one breath with the shot: `5-way, 600
    episodes` and `5-shot · omniglot` become `5-way 5-shot, 600 episodes · omniglot`.
    """
    way, shot = re.match(r"(\d+-way)(, .*)", label), re.match(r"(\d+-shot)(.*)", subject)
    return f"{way[1]} {shot[1]}{way[2]}{shot[2]}" if way and shot else f"{label} · {subject}"


def labelled(records: pd.DataFrame) -> pd.DataFrame:
    """Add `backbone`, `shown` and `variant` (a row's labels), `letter` (its preprocessing's) and `column` (the task's).

    The backbone's spec as it was written is kept as `spec`.
    """
    letters = {text: _letter(number) for number, text in enumerate(sorted(set(records["preprocessing"])))}
    records = records.assign(
        spec=records["backbone"],
        backbone=_backbone_labels(records),
        variant="",
        letter="preprocessing " + records["preprocessing"].map(letters),
    )
    for _, same in records.groupby(["backbone", "representation"]):
        for name in ("preprocessing", "dtype", "architecture", "weights"):
            if same[name].nunique() > 1:
                text = {"preprocessing": same["letter"], "weights": same["weights"].str[:8]}.get(name, same[name])
                records.loc[same.index, "variant"] += " " + text
    records["variant"] = records["variant"].str.strip()
    alias = records["alias_of"].map(lambda name: f" (= {name})" if isinstance(name, str) else "")
    untrained = records["representation_provenance"].map(lambda value: " (untrained)" if value == "untrained" else "")
    records["shown"] = records["representation"] + alias + untrained
    return with_columns(records)


def with_columns(records: pd.DataFrame) -> pd.DataFrame:
    """Add `column`, the task's name; where it stands for several sets of data, what tells them apart in these records.

    That is the names of their splits or the metric, and a hash where these are the same.
    """
    version = records[[*DATA_FIELDS, "shown_metric"]].astype(str).agg(" ".join, axis=1)
    splits = splits_text(records).groupby([records["task"], version]).transform("first")
    parts = [splits, records["shown_metric"]]
    differ = [part.groupby(records["task"]).transform("nunique") > 1 for part in parts]
    told = pd.Series("", index=records.index)
    for part, several in zip(parts, differ, strict=True):
        told = told.where(~several, told + " [" + part + "]")
    hashes = version.map(lambda text: "#" + hashlib.sha256(text.encode()).hexdigest()[:6])
    alike = version.groupby([records["task"], told]).transform("nunique") > 1
    return records.assign(column=records["task"] + told.where(~alike, told + hashes))


def splits_text(records: pd.DataFrame) -> pd.Series:
    """What was learned from and what was scored: `train800val200 → test`."""
    return records["train_split"] + " → " + records["test_split"]


def signs(records: pd.DataFrame) -> dict[str, str]:
    """Column to the signs that stand behind its name: data of another size, rendered images."""
    deviates = records["deviations"].ne("").groupby(records["column"]).any()
    synthetic = records["synthetic"].astype(bool).groupby(records["column"]).any()
    return {
        column: (DEVIATES if deviates[column] else "") + (SYNTHETIC if synthetic[column] else "")
        for column in deviates.index
    }


def _backbone_labels(records: pd.DataFrame) -> pd.Series:
    """The spec without its options where that names one set of weights, else with them; one spelling for each row."""
    specs = records.groupby(ROW_FIELDS, sort=False)["backbone"].transform("first")
    short, long = specs.map(lambda spec: _spec_labels(spec)[0]), specs.map(lambda spec: _spec_labels(spec)[1])
    model = records["architecture"] + records["weights"]
    return short.where(model.groupby(short).transform("nunique") == 1, long)


def _spec_labels(spec: str) -> tuple[str, str]:
    """A spec's short and long label; the spec itself where another version wrote one that this version cannot read."""
    try:
        parsed = parse_backbone_spec(spec)
    except VitbenchError:
        return spec, spec
    return parsed.label, parsed.long_label


def _letter(number: int) -> str:
    """A, B, …, Z, AA, AB and so on."""
    before, last = divmod(number, 26)
    return (_letter(before - 1) if before else "") + string.ascii_uppercase[last]
