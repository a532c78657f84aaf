"""Second sets of labels: every right label of an image, where one label is not the whole truth."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Sequence

from vitbench.errors import DataError
from vitbench.tasks.sources.rows import LabelSets

_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


def imagenet_real(names: Sequence[str], task: str) -> LabelSets:
    """The ReaL labels of ImageNet validation images (Beyer et al., Are we done with ImageNet?, 2020), by their file names.

    The labels are the authors' `real.json`, which ships with timm: item i is the list for `ILSVRC2012_val_{i + 1:08d}`. An image
    whose list is empty has no right label, and counts in no score.

    Args:
        names: File name of each image; what surrounds the validation number does not matter.
        task: The task's name, for messages.

    Raises:
        DataError: A name holds no number of a validation image, so that its labels cannot be found.
    """
    content = pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json")
    assert content is not None
    lists = json.loads(content)
    found = []
    for row, name in enumerate(names):
        match = _VALIDATION_NAME.search(name)
        if match is None or not 1 <= int(match[1]) <= len(lists):
            raise DataError(
                f"task '{task}': test image {row} is called '{name}', and ReaL labels are found by names like "
                f"ILSVRC2012_val_00000001.JPEG: the source must keep them"
            )
        found.append(lists[int(match[1]) - 1])
    return LabelSets.of(found)
