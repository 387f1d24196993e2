"""The recognition pipeline against the bare forward passes of its models on the same prepared batches, per photo.

The models are built at the published sizes with random weights, or read from ``--models`` (a folder, or "sample").
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measuring import in_turn, parser, report
from benchmarks.published import build
from pekit.cli import MODEL_SETS, LoadingSettings, ModelSettings
from pekit.pictures import Task, load_batches
from pekit.pipeline import Recognizer, extract_views, match_photos
from pekit.records import Concept, Gallery, Photo


def write_photos(folder: Path, count: int, side: int) -> list[Photo]:
    """JPEG photos of a camera's proportions, side x 3/4 side px."""
    rng = np.random.default_rng(0)
    photos = []
    for i in range(count):
        coarse = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        path = folder / f"{i}.jpg"
        Image.fromarray(coarse).resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(path, quality=90)
        photos.append(Photo(path, path.name, ("my-red-mug",)))
    return photos


def main() -> None:
    options = parser(__doc__, photos=6, side=2000, batch_size=1, workers=1, concepts=40, views=5)
    options.add_argument("--models", help="a folder with grounding/ and features/, or sample; built where left out")
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="float32")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = args.models == "sample"
        models = Path(args.models) if args.models and not sample else folder / "models"
        roles = {role: str(models / role) for role in ("grounding", "masks", "features")}
        if sample:
            roles = {role: MODEL_SETS["sample"][role] for role in roles}
        elif not args.models:
            build(models)
        recognizer = Recognizer(ModelSettings(**roles, device=args.device, dtype=args.dtype))
        compare(args, recognizer, write_photos(folder, args.photos, args.side), folder)


def compare(args, recognizer: Recognizer, photos: list[Photo], folder: Path) -> None:
    loading = LoadingSettings(batch_size=args.batch_size, num_workers=args.workers)
    tasks = [Task(photo) for photo in photos]
    grounder, dino = recognizer.grounder, recognizer.features
    assert grounder is not None
    prepare = {"grounding": grounder.prepare, "features": dino.prepare}
    prepared = list(load_batches(tasks, recognizer.size, prepare, replace(loading, num_workers=0), args.batch_size))
    words = grounder._tokenizer(["object."] * args.batch_size, return_tensors="pt").to(recognizer.device)

    def settle() -> None:
        if recognizer.device.type == "cuda":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def bare() -> None:
        for batch in prepared:
            count = len(batch)
            move = {r: v.to(recognizer.device, grounder.dtype) for r, v in batch.inputs.items()}
            grounder.model(pixel_values=move["grounding"], **{key: value[:count] for key, value in words.items()})
            dino.model(pixel_values=move["features"])
        settle()

    rng = np.random.default_rng(0)
    known = tuple(Concept(f"{i}", "", "") for i in range(args.concepts))
    shape = (args.concepts, args.views, dino.width)
    gallery = Gallery(known, rng.standard_normal(shape, dtype=np.float32), np.ones(shape[:2], dtype=bool))

    def detecting() -> None:
        found = sum(matches.error is None for matches in match_photos(recognizer, photos, gallery, loading))
        assert found == len(photos)

    def extracting() -> None:
        failed = extract_views(
            recognizer, tasks, {"my-red-mug": "my red mug."}, loading, lambda t: folder / f"{t.photo.path.stem}.pt", 0
        )
        assert not failed

    seconds = in_turn({"bare passes": bare, "extraction": extracting, "detection": detecting}, args.repeats)
    per_photo = {name: [value / len(photos) for value in values] for name, values in seconds.items()}
    report(args, per_photo, "bare passes", device=str(recognizer.device), note="seconds are per photo")


if __name__ == "__main__":
    main()
