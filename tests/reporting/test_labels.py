from __future__ import annotations

import math

import pytest

from vitbench.reporting.labels import shot_label


@pytest.mark.parametrize(
    ("shot", "learned", "text"),
    [
        (5, None, "5-shot"),
        (5, 50, "5-shot"),
        (0, None, "all train images"),
        (0, 1000.0, "all train images"),
        (0, math.nan, "all train images"),
        (0, 0, "no training"),
    ],
)
def test_a_shot_in_words(shot: int, learned: float | None, text: str) -> None:
    assert shot_label(shot, learned) == text
