"""Which classes of a checkpoint's classifier stand for which classes of a task: by name, by index, or by a file.

Names are compared without case, underscores and punctuation. A WordNet id (`n01440764`) in a name is compared as such, and stands
for its words (`tench`, `Tinca tinca`) where the other side has words. Where several classes of the checkpoint fit equally well
(ImageNet has two called `crane`), nothing is guessed.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitbench.errors import UsageError, listed, nearest

Words = Callable[[str], tuple[str, ...]]
"""A WordNet id to its words, the most usual first."""

_WORDNET_ID = re.compile(r"(?<![a-z0-9])n\d{8}(?!\d)")
_LEADING_INDEX = re.compile(r"^\d+ +(?=\D)")
_HEADER = ("checkpoint", "task")
_MODES = ("auto", "name", "index")


@dataclass(frozen=True)
class Labels:
    """The classes of one side.

    Attributes:
        owner: Whose they are, as messages say it: `the checkpoint`, `task 'flowers'`.
        names: In order, or empty where nobody knows them.
        count: Number of classes.
    """

    owner: str
    names: Sequence[str]
    count: int


@dataclass(frozen=True)
class LabelMapping:
    """The checkpoint's classes that stand for each class of a task.

    Attributes:
        groups: One tuple of the checkpoint's class indices for each class of the task; empty where it has no such class.
        how: How they were found, for a reader: `by name`, `by index`, `by labels.json`.
    """

    groups: tuple[tuple[int, ...], ...]
    how: str

    @property
    def known(self) -> tuple[int, ...]:
        """The classes of the task that the checkpoint has."""
        return tuple(label for label, group in enumerate(self.groups) if group)


def map_labels(mode: str, checkpoint: Labels, task: Labels, words: Words) -> LabelMapping:
    """Find the mapping.

    Args:
        mode: `name`, `index`, a JSON or CSV file, or `auto`: by name where both sides have names, else by index where they have
            equally many classes.
        checkpoint: The classifier's classes.
        task: The task's classes.
        words: The words of a WordNet id.

    Raises:
        UsageError: There is no mapping of this kind, the file names a class that is not there, or a name fits several classes.
    """
    if mode == "auto":
        if checkpoint.names and task.names:
            mode = "name"
        elif checkpoint.count == task.count:
            mode = "index"
        else:
            raise UsageError(
                f"the classes cannot be matched: {_unnamed(checkpoint, task)}, and they are not equally many "
                f"({checkpoint.count} and {task.count}): --set labels=FILE says which is which"
            )
    if mode == "index":
        groups = tuple((label,) if label < checkpoint.count else () for label in range(task.count))
        return LabelMapping(groups, "by index")
    if mode == "name":
        if not checkpoint.names or not task.names:
            raise UsageError(
                f"labels=name: {_unnamed(checkpoint, task)}: --set labels=index, or --set labels=FILE with the names"
            )
        return LabelMapping(_by_name(checkpoint, task, words), "by name")
    return _by_file(mode, checkpoint, task, words)


def check_mode(mode: str) -> str:
    """`mode` if `map_labels` takes it.

    Raises:
        UsageError: It is neither a mode nor a file.
    """
    if mode in _MODES or Path(mode).expanduser().is_file():
        return mode
    path = Path(mode).expanduser()
    files = [file.name for file in path.parent.iterdir() if file.is_file()] if path.parent.is_dir() else []
    close = nearest(path.name, [*(_MODES if path.name == mode else ()), *files], count=1)
    hint = f"; did you mean {close[0] if close[0] in _MODES else path.with_name(close[0])}?" if close else ""
    raise UsageError(f"protocol 'head': labels must be auto, name, index, or a JSON or CSV file, got '{mode}'{hint}")


def missing_text(mapping: LabelMapping, checkpoint: Labels, task: Labels, words: Words) -> str:
    """Which classes of the task the checkpoint lacks, with what is nearest to the first of them; empty where it has all."""
    missing = [label for label, group in enumerate(mapping.groups) if not group]
    if not missing:
        return ""
    names = [_shown(task, label) for label in missing]
    close = []
    if task.names and checkpoint.names:
        spellings = {form: name for name in checkpoint.names for form in _forms(name, words)}
        wanted = next(iter(_forms(task.names[missing[0]], words)))
        close = list(dict.fromkeys(_labelled(spellings[form], words) for form in nearest(wanted, spellings, count=2)))
    hint = f" (nearest to {names[0]}: {' or '.join(close)})" if close else ""
    return f"the checkpoint lacks {len(missing)} of the {task.count} classes of {task.owner}: {listed(names)}{hint}"


def _unnamed(checkpoint: Labels, task: Labels) -> str:
    sides = [side.owner for side in (checkpoint, task) if not side.names]
    return f"{' and '.join(sides)} {'have' if len(sides) > 1 else 'has'} no class names"


def normal(name: str) -> str:
    """A name without case, underscores and punctuation: `English_springer` is `english springer`."""
    return " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name).casefold()).split())


def _forms(name: str, words: Words) -> dict[str, int]:
    """Every form under which a class may be found, with its rank: 0 the name itself or its id, 1 its first word, 2 the others."""
    found = re.search(_WORDNET_ID, name.lower())
    identifier = found[0] if found else ""
    plain = normal(name)
    forms = {plain: 0} if plain != identifier else {}
    if identifier:
        forms[identifier] = 0
        rest = _LEADING_INDEX.sub("", normal(name.lower().replace(identifier, " ")))
        if rest and not rest.isdigit():
            forms.setdefault(rest, 1)
    parts = words(identifier) if identifier else tuple(name.split(","))
    for position, part in enumerate(parts):
        forms.setdefault(normal(part), 1 if position == 0 else 2)
    forms.pop("", None)
    return forms


def _candidates(name: str, table: Mapping[str, Mapping[int, int]], words: Words) -> list[int]:
    """The classes that a name fits best, none of them where it fits none."""
    ranks: dict[int, int] = {}
    forms = _forms(name, words)
    for form, rank in forms.items():
        for label, other in table.get(form, {}).items():
            ranks[label] = min(rank + other, ranks.get(label, rank + other))
    best = min(ranks.values(), default=0)
    return sorted(label for label, rank in ranks.items() if rank == best)


def _table(names: Iterable[str], words: Words) -> dict[str, dict[int, int]]:
    """Form of a name to the classes that have it, each with the form's rank."""
    table: dict[str, dict[int, int]] = {}
    for label, name in enumerate(names):
        for form, rank in _forms(name, words).items():
            table.setdefault(form, {})[label] = rank
    return table


def _by_name(checkpoint: Labels, task: Labels, words: Words) -> tuple[tuple[int, ...], ...]:
    table = _table(checkpoint.names, words)
    groups = []
    taken: dict[int, int] = {}
    for label, name in enumerate(task.names):
        fits = _candidates(name, table, words)
        fits = [fit for fit in fits if not _other_id(name, checkpoint.names[fit])]
        if len(fits) > 1:
            which = ", ".join(f"{fit} '{_labelled(checkpoint.names[fit], words)}'" for fit in fits[:3])
            raise UsageError(
                f"class '{name}' of {task.owner} fits {len(fits)} of the checkpoint's classes ({which}): "
                "--set labels=FILE says which one is meant"
            )
        if fits and fits[0] in taken:
            raise UsageError(
                f"classes '{task.names[taken[fits[0]]]}' and '{name}' of {task.owner} both fit the checkpoint's class "
                f"'{_labelled(checkpoint.names[fits[0]], words)}': --set labels=FILE says which one is meant"
            )
        taken |= dict.fromkeys(fits, label)
        groups.append(tuple(fits))
    return tuple(groups)


def _other_id(one: str, other: str) -> bool:
    """Whether both names have a WordNet id, and not the same."""
    ids = [re.findall(_WORDNET_ID, name.lower()) for name in (one, other)]
    return all(ids) and not set(ids[0]) & set(ids[1])


def _labelled(name: str, words: Words) -> str:
    """A name as messages show it: a WordNet id with its first word."""
    known = words(name) if re.fullmatch(_WORDNET_ID, name) else ()
    return f"{name} ({known[0]})" if known else name


def _shown(labels: Labels, label: int) -> str:
    return labels.names[label] if labels.names else f"class {label}"


def _by_file(file: str, checkpoint: Labels, task: Labels, words: Words) -> LabelMapping:
    path = Path(file).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        content: Any = json.loads(text) if path.suffix.lower() == ".json" else _csv_pairs(path, text)
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(
            f"{path} cannot be read as {'JSON' if path.suffix.lower() == '.json' else 'CSV'}: {error}"
        ) from error
    how = f"by {path.name}"
    if isinstance(content, list) and path.suffix.lower() == ".json":
        if len(content) != checkpoint.count:
            raise UsageError(f"{path} lists {len(content)} classes, and the checkpoint has {checkpoint.count}")
        if content and all(isinstance(name, str) for name in content):
            return _by_listed_names(path, Labels(checkpoint.owner, content, checkpoint.count), task, words, how)
        pairs = [(f"{path}: entry {index}", index, value) for index, value in enumerate(content)]
    elif isinstance(content, dict):
        pairs = [(f"{path}", key, value) for key, value in content.items()]
    elif isinstance(content, list):
        pairs = content
    else:
        raise UsageError(
            f"{path}: a mapping of the checkpoint's classes to the task's is expected, or a list of the checkpoint's names"
        )
    find, give = _finder(checkpoint, words), _finder(task, words)
    groups: list[list[int]] = [[] for _ in range(task.count)]
    given: dict[int, str] = {}
    for where, key, value in pairs:
        if value is None:
            continue
        index, label = find(where, key), give(where, value)
        if index in given:
            raise UsageError(f"{where}: the checkpoint's class {key} was given already, as '{given[index]}'")
        given[index] = str(key)
        groups[label].append(index)
    return LabelMapping(tuple(tuple(sorted(group)) for group in groups), how)


def _by_listed_names(path: Path, checkpoint: Labels, task: Labels, words: Words, how: str) -> LabelMapping:
    """The mapping by name, with the names of the checkpoint's classes from a file."""
    if not task.names:
        raise UsageError(f"{path} has the checkpoint's names, and {task.owner} has no class names to match them with")
    return LabelMapping(_by_name(checkpoint, task, words), how)


def _csv_pairs(path: Path, text: str) -> list[tuple[str, str, str | None]]:
    """Where it stands, the checkpoint's class and the task's, of every line of a CSV file."""
    pairs = []
    for number, row in enumerate(csv.reader(io.StringIO(text), strict=True), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and tuple(cell.lower() for cell in cells) == _HEADER):
            continue
        if len(cells) != 2:
            raise UsageError(
                f"{path}:{number}: {len(cells)} columns, where the checkpoint's class and the task's are expected"
            )
        pairs.append((f"{path}:{number}", cells[0], cells[1] or None))
    return pairs


def _finder(labels: Labels, words: Words) -> Callable[[str, Any], int]:
    """A function from a name, or a number of a class, as a file has it, to the class."""
    table = _table(labels.names, words)

    def find(where: str, value: Any) -> int:
        text = str(value).strip()
        fits = _candidates(text, table, words) if isinstance(value, str) else []
        if len(fits) == 1:
            return fits[0]
        if text.isdecimal() and not fits:
            if int(text) < labels.count:
                return int(text)
            raise UsageError(f"{where}: {labels.owner} has no class {text}: they go from 0 to {labels.count - 1}")
        if fits:
            raise UsageError(
                f"{where}: '{text}' fits several classes of {labels.owner} ({', '.join(map(str, fits[:4]))}): "
                "give one by its number"
            )
        spellings = {form: name for name in labels.names for form in _forms(name, words)}
        close = list(dict.fromkeys(spellings[form] for form in nearest(normal(text), spellings)))
        hint = (
            f"; did you mean {' or '.join(repr(name) for name in close)}?"
            if close
            else f" (they are numbered from 0 to {labels.count - 1})"
        )
        raise UsageError(f"{where}: {labels.owner} has no class '{text}'{hint}")

    return find
