from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from vitbench.errors import UsageError
from vitbench.registry import Registry, uncollected


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()


def test_the_collector_is_off_inside_and_on_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), uncollected():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()


def test_who_switched_the_collector_off_finds_it_off() -> None:
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


def test_what_is_kept_is_left_out_of_later_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    gc.unfreeze()
    with uncollected():
        pass
    assert gc.get_freeze_count() == 0
    with uncollected(kept=True):
        pass
    assert gc.get_freeze_count() > 0


def test_nothing_is_left_out_where_triton_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", sys)
    gc.unfreeze()
    with uncollected(kept=True):
        pass
    assert gc.get_freeze_count() == 0


def test_an_entry_is_imported_when_it_is_asked_for() -> None:
    registry = Registry("thing", "", {"one": "json:dumps", "broken": "no_such_module:thing"})
    assert registry.names() == ["one", "broken"]
    assert registry.load("one")([1]) == "[1]"
    with pytest.raises(UsageError, match="one"):
        registry.load("onne")
    with pytest.raises(ModuleNotFoundError):
        registry.load("broken")
    assert gc.isenabled()
