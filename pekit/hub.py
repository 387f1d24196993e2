"""Loading checkpoints: from the hub, its cache, or a folder, with errors that say what to do."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers import AutoConfig
from transformers.utils.hub import cached_file, extract_commit_hash, get_checkpoint_shard_files

from pekit.records import ModelSettings, UserError, reason

log = logging.getLogger(__name__)
downloads_are_shown = not are_progress_bars_disabled()
transformers.utils.logging.disable_progress_bar()  # photos have one; a second, of weights, only hides it
if downloads_are_shown:  # theirs went with it
    enable_progress_bars()

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
EDGE_BYTES = 1 << 20
# role in recognition -> the option that names the checkpoint, the architectures that fit
ROLES = {
    "grounding": ("--grounding_model", ("grounding-dino", "mm-grounding-dino")),
    "masks": ("--sam_model", ("sam",)),
    "features": ("--dino_model", ("dinov2", "dinov2_with_registers")),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found, before its weights are read."""

    option: str
    source: str
    name: str
    revision: str | None
    config: Any

    def load(self, model_class: Any, **options: Any) -> torch.nn.Module:
        """Load the weights for inference; ``options`` are those of ``from_pretrained``.

        Raises:
            UserError: weights are missing, damaged, or not of this architecture.
        """
        model, info = self.part(model_class, output_loading_info=True, **options)
        if missing := sorted(info["missing_keys"]):  # they would be random numbers
            raise UserError(
                f"{self.option} {self.source} lacks {len(missing)} weights of {model_class.__name__} ({missing[0]} …): "
                "give a complete checkpoint"
            )
        return model.eval().requires_grad_(False)

    def part(self, auto_class: Any, **options: Any) -> Any:
        """Load the checkpoint's configuration, tokenizer, processor or model, as ``auto_class`` does."""
        with _explained(self.option, self.source):
            return auto_class.from_pretrained(self.name, revision=self.revision or "main", **options)

    def described(self) -> dict:
        """What records say of it; the hub's weights are fetched first where they are not on disk.

        Returns:
            source: what the option said: hub id, ``id@revision`` or a folder.
            name: the part that ``from_pretrained`` takes.
            revision: the commit it resolved to, None for a folder.
            fingerprint: digest of configuration and weight files, the same for a hub checkpoint and a local copy of it.
        """
        with _explained(self.option, self.source):
            folder = Path(self.name)
            if not folder.is_dir():
                folder = _fetched(self.name, self.revision or "main")
        return {
            "source": self.source,
            "name": self.name,
            "revision": self.revision,
            "fingerprint": fingerprint(folder),
        }


def split_source(source: str, option: str) -> tuple[str, str]:
    """Name and revision, empty where there is none, of ``id@revision``; a folder may have an ``@`` in its path.

    Raises:
        UserError: it can only be a folder's path, and there is no such folder.
    """
    name, _, revision = source.partition("@")
    for path in (source, name):
        if (folder := Path(path).expanduser()).is_dir():
            return str(folder), ""
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{option} {source}: no such folder; give a folder written by save_pretrained, or a hub id")
    return name, revision


def find_checkpoint(source: str, option: str, model_types: tuple[str, ...] = (), **options: Any) -> Checkpoint:
    """Find a checkpoint and read its configuration.

    Args:
        source: hub id, ``id@revision``, or a folder written by ``save_pretrained``.
        option: the option it came from, for messages.
        model_types: architectures that fit, as ``config.json`` names them; empty where any does.
        options: more of those of ``AutoConfig.from_pretrained``.

    Raises:
        UserError: no such folder, no such checkpoint, no network, or an architecture that is unknown or does not fit.
    """
    name, revision = split_source(source, option)
    local = Path(name).is_dir()
    if local and not Path(name, "config.json").is_file():
        raise UserError(f"{option} {source} has no config.json: give a folder written by save_pretrained, or a hub id")
    with _explained(option, source):
        if not local:
            _ask_once(name, revision or "main")
        config = AutoConfig.from_pretrained(name, revision=revision or "main", **options)
        # the folder it lies in, in the hub's cache, is named after the commit
        file = None if local else cached_file(name, "config.json", revision=revision or "main")
    if model_types and config.model_type not in model_types:
        raise UserError(
            f"{option} {source} is a {config.model_type} model; this option takes {' or '.join(model_types)}"
        )
    commit = extract_commit_hash(file, None) or revision or None
    return Checkpoint(option, source, name, commit, config)


def identify(models: ModelSettings, ground: bool, segment: bool) -> dict[str, dict]:
    """Role -> source, revision and fingerprint of the recognition checkpoints, without loading them."""
    roles = ["features"] + ["grounding"] * ground + ["masks"] * segment
    return {role: find_checkpoint(getattr(models, role), *ROLES[role]).described() for role in roles}


@contextmanager
def _explained(option: str, source: str) -> Iterator[None]:
    """Turn the library's errors about missing or damaged checkpoints into one sentence with the mend."""
    try:
        yield
    except Exception as error:  # each library has errors of its own, and so has a checkpoint's own code
        if is_out_of_memory(error) or isinstance(error, MemoryError):
            raise
        if "trust_remote_code" in str(error):
            mend = (
                "it is in the format of its own code: take the version that was converted for transformers (of "
                "InternVL OpenGVLab/InternVL3-…-hf), or for vqa.py let its code run, with --trust_remote_code"
            )
        elif isinstance(error, ImportError):
            mend = "install what it needs, or take another checkpoint"
        elif "gated repo" in str(error):
            mend = "accept its terms on its page at the hub, and log in here with: hf auth login"
        elif Path(source).expanduser().is_dir():
            mend = "check that the folder is complete"
        else:
            mend = "check the id and the network, or download it where there is one and give the folder"
        raise UserError(f"{option} {source} cannot be loaded ({reason(error)}): {mend}") from error


def _ask_once(name: str, revision: str) -> None:
    """Give up at the first request where the hub cannot be reached; the library repeats it for half a minute."""
    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision))
    except (HfHubHTTPError, OfflineModeIsEnabled):
        return  # what follows says what it answered, or what is not on disk
    except Exception as error:  # each version of the hub's library has connection errors of its own
        raise OSError(f"no answer from the hub: {error}") from error


def _fetched(name: str, revision: str) -> Path:
    """The folder of a hub checkpoint in the hub's cache, its weights in it.

    Loading would fetch them too, but what they are must be known before: views of different models are not mixed.
    """
    folder = Path(str(cached_file(name, "config.json", revision=revision))).parent
    for file in [file for file in WEIGHT_FILES if (folder / file).exists()] or WEIGHT_FILES:
        found = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        if found and file.endswith(".index.json"):
            get_checkpoint_shard_files(name, found, revision=revision)
        if found:
            break
    return folder


def fingerprint(folder: Path) -> str:
    """A digest of a checkpoint's configuration and weights, quick at any size; empty where weights are not on disk.

    Weight files count with their size, first and last MiB: enough to tell checkpoints apart, not to prove integrity.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    shards = sorted(folder.glob("model-*.safetensors")) + sorted(folder.glob("pytorch_model-*.bin"))
    files = [folder / name for name in WEIGHT_FILES if (folder / name).exists()][:1] + shards
    if not files:
        return ""
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(EDGE_BYTES))
            stream.seek(max(0, size - EDGE_BYTES))
            digest.update(stream.read(EDGE_BYTES))
    return digest.hexdigest()[:16]


def pick_device(device: str) -> torch.device:
    """``auto``: a CUDA GPU, else Apple's, else the CPU. A GPU with a number becomes the process's current one.

    Raises:
        UserError: the device named is not on this machine, or this build of torch has no code for it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.ones(1, device=chosen).add(1).item()  # runs something there: memory alone an old GPU would give
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)  # or pinning memory would open the first GPU in every process
    except (RuntimeError, AssertionError) as error:
        why = reason(error).partition(". ")[0]
        raise UserError(f"--device {device} is not usable here ({why}): try --device cpu") from None
    return chosen


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full; only that of torch's own CUDA allocator has a class."""
    words = r"(CUDA|HIP) error: out of memory|MPS backend out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|CPUAllocator"
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and re.search(words, str(error)) is not None
    )


def versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("pekit", "torch", "torchvision", "transformers", "numpy", "pillow", "albumentations"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
