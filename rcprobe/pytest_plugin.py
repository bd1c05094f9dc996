"""``pytest --rcprobe-conformance[=NAME]``: the checks of ``rcprobe plugins check`` as tests, one a model family."""

import pytest

EVERY = "*"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The one option."""
    parser.getgroup("rcprobe").addoption(
        "--rcprobe-conformance",
        metavar="NAME",
        nargs="?",
        const=EVERY,
        help="Hold a registered model family to what it declares; without a name, every one that is installed.",
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add an item for each family that is asked for."""
    asked = config.getoption("--rcprobe-conformance")
    if asked is None:
        return
    from rcprobe.plugins import registry

    names = registry().names("models") if asked == EVERY else [asked]
    items += [Conformance.from_parent(session, name=name) for name in names]


class FailedChecks(Exception):
    """What is wrong, in words."""


class Conformance(pytest.Item):
    """The checks of one family."""

    def runtest(self) -> None:
        """Fail with the checks that failed."""
        from rcprobe.adapter import Adapter
        from rcprobe.conformance import check_adapter, report
        from rcprobe.errors import RcprobeError
        from rcprobe.plugins import registry

        try:
            found = check_adapter(registry().checked("models", self.name, Adapter))
        except RcprobeError as error:
            raise FailedChecks(str(error)) from error
        if any(check.passed is False for check in found):
            raise FailedChecks(report(self.name, found))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: str | None = None) -> str:
        """The words alone: a traceback through rcprobe tells a plugin's author nothing."""
        if isinstance(excinfo.value, FailedChecks):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[str, int | None, str]:
        """Where it is told: under no file."""
        return "rcprobe", None, f"rcprobe conformance: {self.name}"
