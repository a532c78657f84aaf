"""A dev split out of a train split, for a task that names none: what `--tune` chooses on."""

from __future__ import annotations

import numpy as np

from vitbench.errors import UsageError
from vitbench.tasks.task import Split

_SEED = 0


def divided(split: Split, fraction: float) -> tuple[Split, Split]:
    """A split in two: `fraction` of every class's images to choose on, the rest to learn from.

    The papers take the end of a shuffled split. A folder's images are in order of class, so that its end is a few classes: here
    scikit-learn draws the same share of every class, by a fixed seed.

    Raises:
        UsageError: There are too few images for it.
    """
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(split), dtype=np.int64)
    try:
        fit, dev = train_test_split(rows, test_size=fraction, random_state=_SEED, stratify=split.labels)
    except ValueError as error:
        raise UsageError(
            f"--tune: {fraction:.0%} of the {len(split):,} images of split '{split.name}' of {split.task} is no dev split with "
            f"every class in it ({error}); --set dev_fraction= takes another share"
        ) from error
    parts = (
        (np.sort(fit), f"{split.name}, {1 - fraction:.0%} of each class"),
        (np.sort(dev), f"{split.name}, the rest"),
    )
    one, other = (split.take(part, name) for part, name in parts)
    return one, other
