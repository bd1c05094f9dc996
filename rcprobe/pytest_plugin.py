"""``pytest --rcprobe-conformance[=NAME]``: the checks of ``rcprobe plugins check`` as tests, one a registered name."""

import pytest

EVERY = "*"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The one option."""
    parser.getgroup("rcprobe").addoption(
        "--rcprobe-conformance",
        metavar="NAME",
        nargs="?",
        const=EVERY,
        help="Hold what is registered under a name to its contract; without a name, everything that is installed.",
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add an item for each name that is asked for."""
    asked = config.getoption("--rcprobe-conformance")
    if asked is None:
        return
    from rcprobe.plugins import registry

    names = dict.fromkeys(entry.name for entry in registry().entries) if asked == EVERY else [asked]
    items += [Conformance.from_parent(session, name=name) for name in names]


class FailedChecks(Exception):
    """What is wrong, in words."""


class Conformance(pytest.Item):
    """The checks of one name."""

    def runtest(self) -> None:
        """Fail with the checks that failed."""
        from rcprobe.conformance import report
        from rcprobe.contracts import check
        from rcprobe.errors import RcprobeError

        try:
            found = check(self.name)
        except RcprobeError as error:
            raise FailedChecks(str(error)) from error
        wrong = [checks for checks in found.values() if any(one.passed is False for one in checks)]
        if wrong:
            raise FailedChecks("\n".join(report(self.name, checks) for checks in wrong))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: str | None = None) -> str:
        """The words alone: a traceback through rcprobe tells a plugin's author nothing."""
        if isinstance(excinfo.value, FailedChecks):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[str, int | None, str]:
        """Where it is told: under no file."""
        return "rcprobe", None, f"rcprobe conformance: {self.name}"
