"""Files of public datasets: from a folder of one's own, or from the hub."""

import hashlib
from pathlib import Path

from rcprobe.errors import UsageError
from rcprobe.hub import from_hub, reachable

REVERSAL = "lberglund/reversal_curse"  # The Reversal Curse (Berglund et al., 2024; arXiv 2309.12288)


def public_file(path: str | None, name: str, repository: str, revision: str | None) -> tuple[Path, str]:
    """The file ``name`` under the folder ``path`` (or that file itself), else in the hub's dataset; and a note saying
    which it is. Raises ``UsageError`` where it isn't, or is there more than once.
    """
    if path is not None:
        given = Path(path)
        found = [given] if given.is_file() else sorted(given.rglob(name))
        where = str(path)
    else:
        found, where = [_from_hub(name, repository, revision)], repository
    if len(found) != 1:
        several = f"; there are {', '.join(str(p.relative_to(Path(where))) for p in found)}" if found else ""
        raise UsageError(f"{where}: {'more than one' if found else 'no'} file {name} in it{several}")
    try:
        digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{found[0]}: can't be read ({error.strerror})") from error
    return found[0], f"{name}: sha256 {digest[:16]}…" + (f", {repository}" if path is None else "")


def _from_hub(name: str, repository: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    def download() -> str:
        listed = HfApi().list_repo_files(repository, repo_type="dataset", revision=revision) if reachable() else []
        inside = next((file for file in listed if Path(file).name == name), name)
        return hf_hub_download(
            repository, inside, repo_type="dataset", revision=revision, local_files_only=not reachable()
        )

    return Path(from_hub(repository, name, download, kind="dataset"))
