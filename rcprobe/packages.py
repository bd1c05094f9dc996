"""Whether a package is installed, without importing it."""

from importlib import metadata, util


def installed(name: str) -> bool:
    """Whether a module can be imported and is a distribution's: a bare folder in the working directory is none."""
    if util.find_spec(name) is None:
        return False
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
