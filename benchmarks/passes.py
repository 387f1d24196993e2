"""Bare forward passes of Grounding DINO and DINOv2, per photo: model sets, and settings that might suit a processor.

The models are built at the published sizes with random weights; other sizes are read from ``--paper`` and ``--small``.
On a CPU Grounding DINO runs in fp32 whatever is asked for, as in the scripts.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from PIL import Image

from benchmarks.measuring import in_turn, parser, report, start
from benchmarks.published import build
from pekit.features import normalised
from pekit.pipeline import Recognizer
from pekit.records import ModelSettings

MODELS = ("Grounding DINO", "DINOv2")
BASE = "paper, float32"


def main() -> None:
    options = parser(__doc__, batch_size=1)
    options.add_argument("--paper", type=Path, help="a folder with grounding/ and features/; built where left out")
    options.add_argument("--small", type=Path, help="the same for the small set")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folders = {
            which: getattr(args, which) or build(Path(name) / which, models=which) for which in ("paper", "small")
        }
        sides = {}
        for which, dtype, channels_last in (
            ("paper", "float32", False),
            ("paper", "float32", True),
            ("paper", "bfloat16", False),
            ("small", "float32", False),
        ):
            roles = {role: str(folders[which] / role) for role in ("grounding", "masks", "features")}
            recognizer = Recognizer(ModelSettings(**roles, device=args.device, dtype=dtype))
            label = f"{which}, {dtype}" + ", channels last" * channels_last
            for model, passes in _passes(recognizer, args.batch_size, channels_last).items():
                sides[f"{model}: {label}"] = passes
        seconds = in_turn(sides, args.repeats)
    per_photo = {name: [value / args.batch_size for value in values] for name, values in seconds.items()}
    for setting in dict.fromkeys(name.partition(": ")[2] for name in per_photo):
        pairs = zip(*(per_photo[f"{model}: {setting}"] for model in MODELS), strict=True)
        per_photo[f"both: {setting}"] = [sum(pair) for pair in pairs]
    ratios = {
        name: round(statistics.median(own) / statistics.median(per_photo[f"{name.partition(':')[0]}: {BASE}"]), 3)
        for name, own in per_photo.items()
    }
    report(args, per_photo, f"both: {BASE}", note="seconds are per photo", of_the_same_in_fp32=ratios)


def _passes(recognizer: Recognizer, count: int, channels_last: bool) -> dict:
    grounder, dino = recognizer.grounder, recognizer.features
    assert grounder is not None
    words = grounder._tokenizer(["object."] * count, return_tensors="pt").to(recognizer.device)
    picture = Image.new("RGB", (recognizer.size, recognizer.size), "teal")
    inputs = {}
    for stage in (grounder, dino):
        pixels = normalised([stage.prepare(picture)] * count, stage.levels)
        inputs[stage] = pixels.contiguous(memory_format=torch.channels_last) if channels_last else pixels.contiguous()
        if channels_last:
            stage.model.to(memory_format=torch.channels_last)

    def run(stage, **more) -> None:
        with torch.inference_mode():
            stage.model(pixel_values=inputs[stage], **more)

    return dict(zip(MODELS, (lambda: run(grounder, **words), lambda: run(dino)), strict=True))


if __name__ == "__main__":
    start(main)
