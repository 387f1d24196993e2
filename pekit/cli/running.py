"""Running a script: what it logs and prints, and what becomes of its errors."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pekit.parallel import PeerLostError, current_shard
from pekit.photos import is_turned
from pekit.records import Photo, UserError, counted

log = logging.getLogger(__name__)

LOOKED_AT = 200  # photos whose EXIF orientation is read beforehand


def show(text: str) -> None:
    """Print a result. Whoever reads the output may have gone, as ``head`` does: that is no mistake."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for what else is printed


def tell_left_out(failed: dict[str, str], total: int) -> int:
    """Say which of ``total`` photos could not be read, name -> reason; the exit code of a run without them."""
    for reason in failed.values():
        show(f"left out: {reason}")
    if failed:
        show(f"{len(failed)} of {counted(total, 'photo')} could not be read")
    return 1 if failed else 0


def tell_of_turned(photos: Sequence[Photo]) -> None:
    """Say how many of the first photos are shown turned by other programs."""
    looked_at = photos[:LOOKED_AT]
    if turned := sum(is_turned(photo.path) for photo in looked_at):
        log.info(
            "%d of the first %d photos have an EXIF orientation, which is ignored, as for the published results: "
            "--exif True turns them",
            turned,
            len(looked_at),
        )


def _out_of_memory(error: RuntimeError | MemoryError) -> str | None:
    """The mend, where memory has run out. The module that knows is looked up: not loaded, it raised nothing."""
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return "there is too little memory: give a smaller --dino_img_size, --batch_size or --num_workers"
    hub = sys.modules.get("pekit.hub")
    if hub and hub.is_out_of_memory(error):
        return (
            "the GPU's memory is full: free it, or use another --device, --dtype bfloat16, --models small or, for an "
            "LVLM, more --device_ids or a smaller --vlm_model"
        )
    # By its words: torch raises a bare RuntimeError, for a worker that was killed even out of a signal handler, so
    # wherever the program is at that time.
    if re.search(r"DataLoader worker \(pid|shared memory(\(shm\)| object)|unable to resize file", str(error)):
        return (
            "a process that reads photos was killed or has too little shared memory: give a smaller --batch_size, "
            "--num_workers 0, or a larger /dev/shm (docker run --shm-size 8g; ulimit -f unlimited)"
        )
    return None


def _mend(error: Exception, args: argparse.Namespace, again: str) -> str:
    """What to do about an error of the system; "" where the error itself says it."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f": make room; what is finished is kept, and {again} goes on from there"
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
        place = Path(str(getattr(error, "filename", ""))).absolute()
        folders = [name for name in ("data_folder", "features_folder", "save_folder") if name in args]
        around = [name for name in folders if place.is_relative_to(getattr(args, name).absolute())]
        options = " or ".join(f"--{name}" for name in around or folders)
        return f": check what is there, or name another {options}"
    if number == errno.ENAMETOOLONG:
        return ": give the photo or folder a shorter name"
    return ""


def run_script(command: Callable[[], int], args: argparse.Namespace, again: str = "the same command") -> int:
    """Run a script's work: log to stderr, turn user errors into one sentence and exit code 2, keep Ctrl-C quiet.

    Args:
        command: the work.
        args: the options.
        again: what goes on from where a run was stopped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold letters that a terminal has not
    shard = current_shard()
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
    logging.getLogger("pekit").setLevel(logging.INFO)
    # what all of several processes find in the folders, the first one tells
    finding = ("names", "datasets", "views", "consolidated", "gallery", "questions", "detecting", "cli.vqa")
    same = [f"pekit.{name}" for name in finding]
    for noisy in ("httpx", "httpx2", "openai", "huggingface_hub", *(same if shard.rank else ())):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        return command()
    except (UserError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(f"error: {error}{_mend(error, args, again)}", file=sys.stderr)
        return 2
    except PeerLostError as error:
        if shard.rank:  # were it to fail too, whoever started it would stop the first while that is still writing
            return 0
        print(f"error: {error}: what is finished is kept; {again} goes on from there", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        mend = _out_of_memory(error)
        if mend is None:
            raise
        print(f"error: {mend}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "leave out --overwrite to go on" if getattr(args, "overwrite", False) else f"{again} goes on"
        print(f"stopped: what is finished is kept; {goes_on} from there", file=sys.stderr)
        return 130
