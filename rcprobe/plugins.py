"""Finding plugins, keeping each one's failures to itself, and turning names into objects."""

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any

import pluggy

from rcprobe import hookspecs
from rcprobe.errors import PluginError, UnknownNameError

GROUP = "rcprobe"
KINDS = ("models", "encodings", "datasets", "metrics", "decoders")
DISABLE = "RCPROBE_DISABLE_PLUGINS"
RAISE = "RCPROBE_RAISE_PLUGIN_ERRORS"


@dataclass(frozen=True)
class Entry:
    """A registered name and where its object lives."""

    kind: str
    name: str
    target: str
    plugin: str
    distribution: str
    version: str


@dataclass(frozen=True)
class Failure:
    """A plugin that was left out, and why."""

    plugin: str
    distribution: str
    version: str
    reason: str


class Registry:
    """All names of all loaded plugins.

    Attributes: ``entries`` (in order of registration) and ``failures`` (plugins that were left out).
    """

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.entries: list[Entry] = []
        self.failures: list[Failure] = []

    def names(self, kind: str) -> list[str]:
        """The registered names of one of ``KINDS``."""
        return [entry.name for entry in self.entries if entry.kind == kind]

    def entry(self, kind: str, name: str) -> Entry:
        """The entry of a name. Raises ``UnknownNameError`` with the nearest known name."""
        for entry in self.entries:
            if entry.kind == kind and entry.name == name:
                return entry
        raise UnknownNameError(kind.removesuffix("s"), name, self.names(kind))

    def get(self, kind: str, name: str) -> Any:
        """Import and return what a name stands for. Raises ``UnknownNameError`` or ``PluginError``."""
        entry = self.entry(kind, name)
        module, _, attribute = entry.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"plugin {entry.plugin!r} ({entry.distribution} {entry.version}) registered {name!r} as "
                f"{entry.target!r}, which can't be imported: {error}"
            ) from error

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call a hook of each plugin in turn; one that raises is recorded and doesn't stop the others."""
        for plugin in self._implementers(hook):
            try:
                self._only(hook, plugin)(**arguments)
            except Exception as error:  # noqa: BLE001 - a stranger's observer may raise anything
                self._fail(plugin, f"its hook {hook} raised {type(error).__name__}: {error}", error)

    def add(self, entry_point: metadata.EntryPoint) -> None:
        """Load one plugin whole or not at all; a failure is recorded with its distribution's name."""
        name = entry_point.name
        try:
            plugin = entry_point.load()
            self.manager.register(plugin, name=name)
            self.manager.check_pending()
            claimed = self._claims(name, *_origin(entry_point))
        except Exception as error:
            if os.environ.get(RAISE):
                raise
            if self.manager.has_plugin(name):
                self.manager.unregister(name=name)
            reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            self.failures.append(Failure(name, *_origin(entry_point), reason))
        else:
            self.entries.extend(claimed)

    def _claims(self, plugin: str, distribution: str, version: str) -> list[Entry]:
        claimed: list[Entry] = []
        for kind in KINDS:
            if plugin in self._implementers(f"register_{kind}"):
                register = self._register(claimed, kind, plugin, distribution, version)
                self._only(f"register_{kind}", plugin)(register=register)
        observes = any(
            plugin in self._implementers(hook) for hook in ("register_commands", "step_finished", "run_finished")
        )
        if not claimed and not observes:
            raise PluginError("it implements no hook, or registers nothing with the hooks it implements")
        return claimed

    def _register(
        self, claimed: list[Entry], kind: str, plugin: str, distribution: str, version: str
    ) -> Callable[[str, str], None]:
        def register(name: str, target: str) -> None:
            module, colon, attribute = target.partition(":")
            if not (module and colon and attribute):
                raise PluginError(f'{kind} {name!r}: the target {target!r} is not of the form "module:attribute"')
            for other in [*self.entries, *claimed]:
                if (other.kind, other.name) == (kind, name):
                    raise PluginError(
                        f"{kind} {name!r} is already registered by plugin {other.plugin!r} ({other.distribution})"
                    )
            claimed.append(Entry(kind, name, target, plugin, distribution, version))

        return register

    def _implementers(self, hook: str) -> list[str]:
        return [impl.plugin_name for impl in getattr(self.manager.hook, hook).get_hookimpls()]

    def _only(self, hook: str, plugin: str) -> pluggy.HookCaller:
        # one raising implementation would abort the others, so each plugin is called by itself
        others = [p for name, p in self.manager.list_name_plugin() if name != plugin and p is not None]
        return self.manager.subset_hook_caller(hook, remove_plugins=others)

    def _fail(self, plugin: str, reason: str, error: Exception) -> None:
        if os.environ.get(RAISE):
            raise error
        known = next((e for e in self.entries if e.plugin == plugin), None)
        self.failures.append(
            Failure(plugin, known.distribution if known else plugin, known.version if known else "", reason)
        )


def load_registry(entry_points: Iterable[metadata.EntryPoint], blocked: Sequence[str] = ()) -> Registry:
    """Load plugins one by one: rcprobe's own first, so that a stranger's claim on its names is the stranger's error.

    ``blocked`` holds names of plugins or of distributions to leave out.
    """
    found = {(point.name, _origin(point)): point for point in entry_points}
    registry = Registry()
    for (name, (distribution, _)), point in sorted(found.items(), key=lambda i: (i[0][1][0] != "rcprobe", i[0])):
        if name not in blocked and distribution not in blocked:
            registry.add(point)
    return registry


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this process: every installed plugin that ``RCPROBE_DISABLE_PLUGINS`` doesn't block."""
    blocked = [name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()]
    return load_registry(metadata.entry_points(group=GROUP), blocked)


def _origin(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    dist = entry_point.dist
    return (dist.name, dist.version) if dist is not None else ("unknown distribution", "")
