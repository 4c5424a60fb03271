"""Accelerators that other packages bring: entry points of the group `corebound.accelerators`, loaded when needed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from corebound.accelerator.base import AbstractAccelerator
from corebound.errors import ConfigError, HostError

GROUP = "corebound.accelerators"
BUILT_IN = "cpu"


@dataclass(frozen=True, kw_only=True)
class Extension:
    """One entry point of the group. `origin` names package, version and object, for messages."""

    name: str
    origin: str
    entry_point: EntryPoint

    def load(self) -> type[AbstractAccelerator]:
        """Return the class. Raises: HostError naming the extension when it cannot be loaded or is no accelerator."""
        try:
            found = self.entry_point.load()
        # An extension's import may raise whatever its libraries raise.
        except Exception as error:
            raise self._broken(f"does not load: {type(error).__name__}: {error}") from error
        if not (isinstance(found, type) and issubclass(found, AbstractAccelerator)):
            raise self._broken(f"expected a subclass of AbstractAccelerator, found {found!r}")
        missing = sorted(getattr(found, "__abstractmethods__", ()))
        if missing:
            raise self._broken(f"does not implement {', '.join(missing)}")
        if getattr(found, "name", None) != self.name:
            raise self._broken(f"expected the class's name to be {self.name!r}, found {getattr(found, 'name', None)!r}")
        return found

    def is_available(self, kind: type[AbstractAccelerator]) -> AbstractAccelerator | None:
        """Return the accelerator if it has a device now. Raises: HostError naming it when it cannot even say that."""
        try:
            accelerator = kind()
            return accelerator if accelerator.is_available() else None
        except Exception as error:
            raise self._broken(f"cannot tell whether it has a device: {type(error).__name__}: {error}") from error

    def _broken(self, problem: str) -> HostError:
        return HostError(
            f"accelerator extension {self.name!r} ({self.origin}) {problem}",
            hint=f"repair or uninstall it, or set COREBOUND_ACCELERATOR; choices: {', '.join(choices())}",
        )


def extensions() -> tuple[Extension, ...]:
    """Return the installed extensions by name. Nothing of them is imported.

    Raises: ConfigError when two have the same name, or one has the name of the built-in accelerator.
    """
    found: dict[str, Extension] = {}
    for entry_point in entry_points(group=GROUP):
        package = entry_point.dist
        origin = f"{package.name} {package.version}, {entry_point.value}" if package else entry_point.value
        extension = Extension(name=entry_point.name, origin=origin, entry_point=entry_point)
        if extension.name == BUILT_IN:
            raise ConfigError(
                f"accelerator extension {extension.name!r} ({origin}): the name belongs to Corebound",
                hint="uninstall it, or ask its author for another name",
            )
        # One distribution may be on the path twice, as in a checkout that is installed too.
        if extension.name in found and found[extension.name].origin != origin:
            raise ConfigError(
                f"two accelerator extensions are called {extension.name!r}: "
                f"{found[extension.name].origin} and {origin}",
                hint="uninstall one of them",
            )
        found[extension.name] = extension
    return tuple(found[name] for name in sorted(found))


def choices() -> tuple[str, ...]:
    """Return every name that COREBOUND_ACCELERATOR can have here."""
    return (BUILT_IN, *sorted({entry_point.name for entry_point in entry_points(group=GROUP)} - {BUILT_IN}))
