"""One lazy registry for everything that can be added by name.

An entry is a string `"module:object"`, imported when it is first asked for, so that listing names costs nothing. Other packages
add entries by entry point.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitbench.errors import UsageError, unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@contextmanager
def uncollected(*, kept: bool = False) -> Iterator[None]:
    """Import inside without the garbage collector, which would search all that a large library makes again and again.

    Nothing that an import makes is garbage: for torch the search is a fifth of the time.

    Args:
        kept: Whether all that there is afterwards stays to the end of the process, and is left out of every later search, that at
            the end included. Nothing is left out where triton is loaded: at the end it would complain of what it finds alive.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if kept and "triton" not in sys.modules:
            gc.freeze()
    finally:
        if enabled:
            gc.enable()


class Registry:
    """Names to lazily imported objects.

    Args:
        noun: What an entry is, for error messages (`"protocol"`).
        group: The entry-point group through which other packages add entries (`"vitbench.protocols"`); empty for none.
        builtin: Name to `"module:object"` for what ships with vitbench; these win over entry points of the same name.
        listed: Whether `vitbench ls` lists them, for the hint of an error.
    """

    def __init__(self, noun: str, group: str, builtin: Mapping[str, str], *, listed: bool = True) -> None:
        self.noun = noun
        self._hint = f"vitbench ls {noun}s" if listed else ""
        self.group = group
        self._builtin = dict(builtin)

    @cached_property
    def _external(self) -> dict[str, EntryPoint]:
        from importlib.metadata import entry_points  # not needed where no name is asked for, as by `vitbench --help`

        return {point.name: point for point in entry_points(group=self.group)} if self.group else {}

    def names(self) -> list[str]:
        """Every name, those that ship with vitbench first."""
        return [*self._builtin, *(name for name in self._external if name not in self._builtin)]

    def check(self, name: str) -> None:
        """Import nothing, but make sure that there is such a name.

        Raises:
            UsageError: There is none; the nearest are offered.
        """
        if name not in self.names():
            raise unknown(self.noun, name, self.names(), hint=self._hint)

    def load(self, name: str) -> Any:
        """Import and return the object called `name`.

        Raises:
            UsageError: There is no such name (the nearest ones are offered), or another package's entry does not import.
        """
        if name in self._builtin:
            module, _, attribute = self._builtin[name].partition(":")
            with uncollected():
                return getattr(import_module(module), attribute)
        if name in self._external:
            point = self._external[name]
            try:
                with uncollected():
                    return point.load()
            except (ImportError, AttributeError) as error:
                raise UsageError(
                    f"{self.noun} '{name}' is registered by entry point as '{point.value}', which does not import: {error}"
                ) from error
        raise unknown(self.noun, name, self.names(), hint=self._hint)
