"""Options shared by the scripts. Imports neither torch nor transformers, so ``--help`` answers at once."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

from pekit import views
from pekit.parallel import usable_cores
from pekit.records import LoadingSettings, ModelSettings, UserError

DATASETS = ("myvlm", "yollava", "this-is-my")
MOST_THRESHOLDS = 1000
SAMPLE_CHECKPOINTS = Path(__file__).parent.parent / "sample" / "checkpoints"
MODEL_SETS: dict[str, dict[str, str]] = {
    "paper": {
        "grounding": "IDEA-Research/grounding-dino-base",
        "masks": "facebook/sam-vit-base",
        "features": "facebook/dinov2-large",
        "lvlm": "OpenGVLab/InternVL3-14B",
    },
    "small": {
        "grounding": "IDEA-Research/grounding-dino-tiny",
        "masks": "facebook/sam-vit-base",
        "features": "facebook/dinov2-base",
        "lvlm": "OpenGVLab/InternVL3-1B",
    },
    "sample": {role: str(SAMPLE_CHECKPOINTS / role) for role in ("grounding", "masks", "features", "lvlm")},
}
MODEL_OPTIONS = {"grounding": "grounding_model", "masks": "sam_model", "features": "dino_model"}


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one sentence: beneath the usage of so many options nobody would find it."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse's; an option that is not known is answered with the one it may have been meant for."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = self._option_string_actions
            near = [o for text in unknown for o in difflib.get_close_matches(text.partition("=")[0], options, n=1)]
            hint = f": did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return known

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and the message."""
        if message.endswith("expected one argument"):  # also where one begins as options do
            message += " (before one that begins with - write =, as in --detect_thresh=-0.5,0.5)"
        self.exit(2, f"{self.prog}: error: {message} (--help lists every option)\n")


def flag(text: str) -> bool:
    """Read a yes/no value, so that ``--grounding_sam False`` is false."""
    value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")
    return value


def path(text: str) -> Path:
    """Read a file's or folder's name; ``~`` is the user's folder, also behind ``=``, where no shell reads it so."""
    try:
        return Path(sentence(text)).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"'{text}' names the folder of a user that is not known here") from None


def checkpoint(text: str) -> str:
    """Read a hub id, the name of a set, or a folder; which of these it is shows when it is looked for."""
    path(text)
    return text


def folder(text: str) -> Path:
    """Read a folder's name, of one that is there or is to be made."""
    named = path(text)
    if os.path.exists(named) and not os.path.isdir(named):  # these raise nothing, whatever the name
        raise argparse.ArgumentTypeError(f"'{text}' is a file: name a folder")
    return named


def sentence(text: str) -> str:
    """Read a text; an empty one is refused, for it mostly comes from a shell variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: give a value, or leave the option out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it is not in UTF-8: write it in UTF-8") from None
    return text


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """Read a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text[:20]) <= sys.maxsize):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {least}")
    return int(text)


def seconds(text: str) -> float:
    """Read a number of seconds from 0 to a day."""
    return _number(text, 86400, "a number of seconds")


def percent(text: str) -> float:
    """Read a share in per cent."""
    return _number(text, 100, "a number")


def _number(text: str, most: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is not {what} from 0 to {most:g}")
    return value


def some_seconds(text: str) -> float:
    """Read a number of seconds above 0."""
    if not (value := seconds(text)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
    return value


def batch_size(text: str) -> int:
    """Read a batch size: a whole number, or ``auto`` (0)."""
    return 0 if text == "auto" else positive(text)


def device_ids(text: str) -> tuple[int, ...]:
    """Read ``0,1,2``."""
    parts = text.replace(" ", ",").split(",")
    numbers = tuple(int(part) for part in parts if part.isascii() and part.isdigit())
    if not numbers or len(set(numbers)) < len(list(filter(None, parts))):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of different device numbers such as 0,1")
    return numbers


def thresholds(text: str) -> tuple[float, ...]:
    """Read one similarity threshold, a list ``0.5,0.75`` or a range ``0.5:0.9:0.05`` with both ends in it."""
    try:
        if ":" in text:
            first, last, step = (Decimal(part) for part in text.split(":"))
            if step <= 0 or last < first:
                raise argparse.ArgumentTypeError(f"'{text}' is not a rising range first:last:step")
            if (last - first) / step >= MOST_THRESHOLDS:
                raise argparse.ArgumentTypeError(f"'{text}' is more than {MOST_THRESHOLDS} thresholds")
            values = [first + i * step for i in range(int((last - first) / step) + 1)]
        else:
            values = [Decimal(part) for part in text.split(",")]
    except (ArithmeticError, ValueError):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number, a list 0.5,0.75 or a range 0.5:0.9:0.05") from None
    if not all(value.is_finite() and -1 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(
            f"'{text}' holds a value that no cosine similarity has: give -1 to 1, as in 0.75"
        )
    return tuple(dict.fromkeys(float(value) for value in values))


def threshold(text: str) -> float:
    """Read one similarity threshold."""
    values = thresholds(text)
    if len(values) > 1:
        raise argparse.ArgumentTypeError(f"'{text}' is more than one threshold")
    return values[0]


def add_flag(group: argparse._ActionsContainer, name: str, help: str) -> None:
    """Add an option that is off unless given, and that also takes True or False as published commands write it."""
    group.add_argument(name, nargs="?", type=flag, const=True, default=False, metavar="True|False", help=help)


def data_options() -> argparse.ArgumentParser:
    """Parent parser: where photos, views and results lie and which views are used."""
    parent = argparse.ArgumentParser(add_help=False)
    group = parent.add_argument_group("data")
    group.add_argument(
        "--data_folder", type=folder, default=Path("./datasets/"), help="Folder that holds the data sets (./datasets/)."
    )
    group.add_argument("--dataset", required=True, choices=DATASETS, help="Which data set's layout to read.")
    group.add_argument(
        "--variation",
        choices=("normal", "augment"),
        default="normal",
        help="Reference views: the photos alone, or with their augmentations.",
    )
    group.add_argument("--n_training_views", type=positive, default=5, help="Reference photos per concept (5).")
    add_flag(group, "--grounding_sam", "Views whose masks SAM cut out, in place of filled boxes.")
    add_flag(group, "--multi_concept", "The multi-concept part of this-is-my.")
    group.add_argument(
        "--features_folder", type=folder, default=Path("./features/"), help="Folder of the stored views (./features/)."
    )
    group.add_argument("--seed", type=natural, default=42, help="Seed of every random draw (42).")
    group.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="Take only the first N photos (or questions), to try something out; detection.py then leaves out concepts "
        "without views.",
    )
    return parent


def model_options() -> argparse.ArgumentParser:
    """Parent parser: checkpoints, devices, reading and batching."""
    parent = argparse.ArgumentParser(add_help=False)
    group = parent.add_argument_group("models")
    group.add_argument(
        "--models",
        type=checkpoint,
        default="paper",
        help="Set of checkpoints: paper (default), small (published smaller ones), sample (bundled ones, which know "
        "drawn objects only), or a folder with grounding/, masks/, features/ and, for vqa.py, lvlm/ in it.",
    )
    for option, what in (
        ("--grounding_model", "Grounding DINO"),
        ("--sam_model", "SAM"),
        ("--dino_model", "DINOv2"),
    ):
        group.add_argument(
            option,
            type=checkpoint,
            help=f"{what} checkpoint in place of the set's: hub id, id@revision or local folder.",
        )
    group.add_argument("--device", default="auto", help="auto (cuda, else mps, else cpu), or a torch device.")
    group.add_argument("--device_ids", type=device_ids, default=(), help="GPUs to spread over, such as 0,1,2,3.")
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="Number format of the models (float32, as published).",
    )
    group.add_argument(
        "--dino_img_size", type=positive, default=518, help="Side S of the squashed picture in px (518)."
    )
    group.add_argument(
        "--batch_size", type=batch_size, default=1, help="Photos per forward pass, or auto for what fits (1)."
    )
    group.add_argument(
        "--num_workers",
        type=natural,
        default=default_workers(),
        help="Processes that decode and prepare photos (half of the cores, 8 at most).",
    )
    add_flag(group, "--compile", "Run the models through torch.compile: slow to start, faster on long runs.")
    add_flag(group, "--offline", "Use only what is on disk; never ask the hub.")
    add_flag(group, "--strict", "Stop at the first unreadable photo.")
    add_flag(group, "--exif", "Turn photos as their EXIF orientation says (published results do not).")
    return parent


def default_workers() -> int:
    """Half of this process's share of the cores, at most 8: the models need the others."""
    return min(8, usable_cores() // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def model_settings(args: argparse.Namespace, used: Sequence[str] = ("grounding", "features")) -> ModelSettings:
    """Resolve the set of checkpoints and the options that replace single ones.

    Args:
        args: the options.
        used: roles whose folders must be there where ``--models`` is a folder; masks are not needed by every run.

    Raises:
        UserError: ``--models`` names neither a set nor a folder of checkpoints, or ``--device`` and ``--device_ids``
            contradict.
    """
    if args.device_ids and ":" in args.device:
        raise UserError(f"--device {args.device} and --device_ids name GPUs twice: leave out one of the two")
    chosen = model_set(args.models)
    roles = {role: getattr(args, option) or chosen[role] for role, option in MODEL_OPTIONS.items()}
    own = Path(args.models).expanduser()
    lacking = [f"{role}/" for role in used if roles[role] == chosen[role] and not (own / role).is_dir()]
    if args.models not in MODEL_SETS and (lacking or not own.is_dir()):
        raise UserError(
            f"--models {args.models} is neither {', '.join(MODEL_SETS)} nor a folder that holds "
            f"{lacking[0] if lacking else 'checkpoints'}: give one of these, or a folder with grounding/, masks/ and "
            "features/ in it"
        )
    return ModelSettings(
        **roles,
        device=args.device,
        dtype=args.dtype,
        size=args.dino_img_size,
        offline=args.offline,
        compile=args.compile,
    )


def model_set(name: str) -> dict[str, str]:
    """The checkpoints of ``--models``, by role."""
    own = Path(name).expanduser()
    return MODEL_SETS.get(name) or {role: str(own / role) for role in MODEL_SETS["paper"]}


def loading_settings(args: argparse.Namespace) -> LoadingSettings:
    """How photos are read, from the parsed options."""
    return LoadingSettings(args.batch_size, args.num_workers, args.strict, args.exif)


def views_folder(args: argparse.Namespace) -> Path:
    """The folder of the stored views that the options mean."""
    return views.views_folder(args.features_folder, args.dataset, args.multi_concept, args.grounding_sam)
