"""Finding plugins, keeping each one's failures to itself, and turning names into objects."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import metadata
from typing import Any

import pluggy

from rcprobe import hookspecs
from rcprobe.errors import PluginError, UnknownNameError

GROUP = "rcprobe"
KINDS = ("models", "encodings", "datasets", "metrics", "decoders")
DISABLE = "RCPROBE_DISABLE_PLUGINS"
MORE = "RCPROBE_PLUGINS"
RAISE = "RCPROBE_RAISE_PLUGIN_ERRORS"
OTHER_HOOKS = ("register_commands", "step_finished", "run_finished")
BUNDLED = "rcprobe_plugins"


@dataclass(frozen=True)
class Origin:
    """A plugin and the distribution it came in; the distribution's metadata is only read when it is asked for."""

    plugin: str
    value: str
    dist: metadata.Distribution | None

    @property
    def key(self) -> str:
        """What tells this plugin from others: two distributions may give an entry point one name."""
        return f"{self.plugin} = {self.value}"

    @property
    def distribution(self) -> str:
        """The distribution's name."""
        return self._named[0]

    @property
    def version(self) -> str:
        """The distribution's version."""
        return self._named[1]

    @cached_property
    def _named(self) -> tuple[str, str]:
        return ("unknown distribution", "") if self.dist is None else (self.dist.name, self.dist.version)

    @property
    def package(self) -> str:
        """The distribution's name and version."""
        return f"{self.distribution} {self.version}".rstrip()

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} ({self.package})"


@dataclass(frozen=True)
class Entry:
    """A registered name and where its object lives."""

    kind: str
    name: str
    target: str
    origin: Origin


@dataclass(frozen=True)
class Failure:
    """A plugin, or one of its hooks, that was left out, and why."""

    origin: Origin
    reason: str


class Registry:
    """All names of all loaded plugins.

    Attributes: ``entries`` (in order of registration), ``failures`` (plugins or hooks that were left out, and why) and
    ``blocked`` (plugins that weren't to be loaded).
    """

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.origins: list[Origin] = []
        self.entries: list[Entry] = []
        self.failures: list[Failure] = []
        self.blocked: list[Origin] = []

    def known(self) -> list[Origin]:
        """Every plugin: those that were loaded, left out and blocked."""
        return list(dict.fromkeys([*self.origins, *(failure.origin for failure in self.failures), *self.blocked]))

    def state(self, origin: Origin) -> str:
        """How a plugin stands: ``loaded``, ``faulty`` (loaded, and a hook failed), ``left out`` or ``disabled``."""
        if origin in self.blocked:
            return "disabled"
        if origin not in self.origins:
            return "left out"
        return "faulty" if self.reasons(origin) else "loaded"

    def reasons(self, origin: Origin) -> str:
        """What is wrong with a plugin; empty where nothing is."""
        return "; ".join(failure.reason for failure in self.failures if failure.origin == origin)

    def names(self, kind: str) -> list[str]:
        """The registered names of one of ``KINDS``."""
        return [entry.name for entry in self.entries if entry.kind == kind]

    def entry(self, kind: str, name: str) -> Entry:
        """The entry of a name. Raises ``UnknownNameError`` with the nearest known name."""
        for entry in self.entries:
            if entry.kind == kind and entry.name == name:
                return entry
        raise UnknownNameError(kind.removesuffix("s"), name, self.names(kind))

    def named(self, name: str) -> list[Entry]:
        """The entries of a name, of whatever kind. Raises ``UnknownNameError`` with the nearest known name."""
        entries = [entry for entry in self.entries if entry.name == name]
        if not entries:
            raise UnknownNameError("plugin entry", name, {entry.name for entry in self.entries})
        return entries

    def get(self, kind: str, name: str) -> Any:
        """Import and return what a name stands for. Raises ``UnknownNameError`` or ``PluginError``."""
        entry = self.entry(kind, name)
        module, _, attribute = entry.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise PluginError(
                f"{entry.origin} registered {name!r} as {entry.target!r}, which can't be imported: "
                f"{type(error).__name__}: {error}"
            ) from error

    def checked(self, kind: str, name: str, wanted: type) -> Any:
        """``get``, and the object must be an instance, or a subclass, of ``wanted``. Raises ``PluginError``."""
        found = self.get(kind, name)
        if not (isinstance(found, wanted) or (isinstance(found, type) and issubclass(found, wanted))):
            origin = self.entry(kind, name).origin
            raise PluginError(f"{origin} registered {kind} {name!r}, which is no rcprobe.{wanted.__name__}")
        return found

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call a hook of each plugin in turn; one that raises is recorded and doesn't stop the others."""
        for origin in self.origins:
            if self.implements(origin, hook):
                self.call(origin, hook, **arguments)

    def call(self, origin: Origin, hook: str, **arguments: Any) -> None:
        """Call one plugin's hook; what it raises is recorded under its name."""
        try:
            self._only(hook, origin)(**arguments)
        except Exception as error:
            if os.environ.get(RAISE):
                raise
            self.blame(origin, f"its hook {hook} raised {type(error).__name__}: {error}")

    def blame(self, origin: Origin, reason: str) -> None:
        """Record what is wrong with a plugin, once."""
        failure = Failure(origin, reason)
        if failure not in self.failures:
            self.failures.append(failure)

    def implements(self, origin: Origin, hook: str) -> bool:
        """Whether a plugin implements a hook."""
        return origin.key in {impl.plugin_name for impl in getattr(self.manager.hook, hook).get_hookimpls()}

    def add(self, entry_point: metadata.EntryPoint) -> None:
        """Load one plugin whole or not at all; a failure is recorded with its distribution's name."""
        origin = Origin(entry_point.name, entry_point.value, entry_point.dist)
        try:
            self.manager.register(entry_point.load(), name=origin.key)
            self.manager.check_pending()
            claimed = self._claims(origin)
        except (Exception, SystemExit) as error:
            if os.environ.get(RAISE):
                raise
            if self.manager.has_plugin(origin.key):
                self.manager.unregister(name=origin.key)
            self.blame(origin, str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}")
        else:
            self.origins.append(origin)
            self.entries.extend(claimed)

    def _claims(self, origin: Origin) -> list[Entry]:
        claimed: list[Entry] = []
        for kind in KINDS:
            if self.implements(origin, f"register_{kind}"):
                self._only(f"register_{kind}", origin)(register=self._register(claimed, kind, origin))
        if not claimed and not any(self.implements(origin, hook) for hook in OTHER_HOOKS):
            raise PluginError("it implements no hook, or registers nothing with the hooks it implements")
        return claimed

    def _register(self, claimed: list[Entry], kind: str, origin: Origin) -> Callable[[str, str], None]:
        def register(name: str, target: str) -> None:
            module, colon, attribute = target.partition(":")
            if not (module and colon and attribute):
                raise PluginError(f'{kind} {name!r}: the target {target!r} is not of the form "module:attribute"')
            for other in [*self.entries, *claimed]:
                if (other.kind, other.name) == (kind, name):
                    raise PluginError(f"{kind} {name!r} is already registered by {other.origin}")
            claimed.append(Entry(kind, name, target, origin))

        return register

    def _only(self, hook: str, origin: Origin) -> pluggy.HookCaller:
        # one raising implementation would abort the others, so each plugin is called by itself
        others = [p for name, p in self.manager.list_name_plugin() if name != origin.key and p is not None]
        return self.manager.subset_hook_caller(hook, remove_plugins=others)


def load_registry(entry_points: Iterable[metadata.EntryPoint], blocked: Sequence[str] = ()) -> Registry:
    """Load plugins one by one: rcprobe's own first, so that a stranger's claim on its names is the stranger's error.

    ``blocked`` holds names of plugins or of distributions to leave out.
    """
    registry = Registry()
    for point in sorted(set(entry_points), key=lambda point: (point.value != BUNDLED, point.name, point.value)):
        distribution = point.dist.name if blocked and point.dist is not None else ""
        if point.name in blocked or distribution in blocked:
            registry.blocked.append(Origin(point.name, point.value, point.dist))
        else:
            registry.add(point)
    return registry


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this process: every installed plugin, and the modules that ``RCPROBE_PLUGINS`` names (looked for
    in the working folder too), but those that ``RCPROBE_DISABLE_PLUGINS`` blocks.
    """
    modules = [metadata.EntryPoint(name, name, GROUP) for name in _listed(MORE)]
    if modules and "" not in sys.path:
        sys.path.append("")  # an installed command, unlike `python -m`, doesn't look in the working folder
    return load_registry([*metadata.entry_points(group=GROUP), *modules], _listed(DISABLE))


def _listed(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]
