"""The recognition pipeline against the bare forward passes of its models on the same prepared batches, per photo.

Bare passes find their batches on the device and in the models' number format: neither reading photos nor copying is in
their time, but both are in the pipeline's; what the workers take to prepare the photos, with no model to wait for, is a
side of its own. ``--released`` adds the released way of detecting: one photo after the other in fp32, a mask for every
proposal; the first ``--released_photos`` are enough for it. The models are built at the published sizes with random
weights, or read from ``--models`` (a folder, or "sample"). The result so far is shown, and written with ``--json``,
after each round.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measuring import parser, report, rounds, start
from benchmarks.published import build
from benchmarks.released import draw_masks, match, merge, pool
from pekit.cli import MODEL_SETS, positive
from pekit.features import normalised
from pekit.photos import open_image, squash
from pekit.pictures import Task, load_batches
from pekit.pipeline import Recognizer, extract_views, match_photos
from pekit.records import Concept, Gallery, LoadingSettings, ModelSettings, Photo, UserError

DIFFERENT_PHOTOS = 32


def write_photos(folder: Path, count: int, side: int) -> list[Photo]:
    """JPEG photos of a camera's proportions, side x 3/4 side px; after the first ones, files that repeat them."""
    rng = np.random.default_rng(0)
    photos: list[Photo] = []
    for i in range(count):
        path = folder / f"{i}.jpg"
        if i < DIFFERENT_PHOTOS:
            coarse = Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
            coarse.resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            path.write_bytes(photos[i % DIFFERENT_PHOTOS].path.read_bytes())
        photos.append(Photo(path, path.name, ("my-red-mug",)))
    return photos


def main() -> None:
    options = parser(__doc__, photos=6, side=2000, batch_size=1, workers=1, concepts=40, views=5)
    options.add_argument("--models", help="a folder with grounding/ and features/, or sample; built where left out")
    options.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options.add_argument("--released", action="store_true", help="measure the released way of detecting as well")
    options.add_argument("--released_photos", type=positive, default=16, help="photos that --released takes, at most")
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
        elif not models.is_dir():
            raise UserError(f"--models {args.models} is no folder: name one with grounding/ and features/ in it")
        settings = ModelSettings(**roles, device=args.device, dtype=args.dtype)
        compare(args, settings, write_photos(folder, args.photos, args.side), folder)


def compare(args, settings: ModelSettings, photos: list[Photo], folder: Path) -> None:
    recognizer = Recognizer(settings)
    loading = LoadingSettings(batch_size=args.batch_size, num_workers=args.workers)
    tasks = [Task(photo) for photo in photos]
    grounder, dino = recognizer.grounder, recognizer.features
    assert grounder is not None
    stages = {"grounding": grounder, "features": dino}
    prepare = {role: stage.prepare for role, stage in stages.items()}
    prepared = [
        {role: normalised(batch.inputs[role], stage.levels) for role, stage in stages.items()}
        for batch in load_batches(tasks, recognizer.size, prepare, loading, args.batch_size)
    ]
    words = grounder._tokenizer(["object."] * args.batch_size, return_tensors="pt").to(recognizer.device)

    @torch.inference_mode()
    def bare() -> None:
        for inputs in prepared:
            count = len(inputs["features"])
            grounder.model(pixel_values=inputs["grounding"], **{key: value[:count] for key, value in words.items()})
            dino.model(pixel_values=inputs["features"])

    rng = np.random.default_rng(0)
    known = tuple(Concept(f"{i}", "", "") for i in range(args.concepts))
    shape = (args.concepts, args.views, dino.width)
    gallery = Gallery(known, rng.standard_normal(shape, dtype=np.float32), np.ones(shape[:2], dtype=bool))

    def preparing() -> None:
        for _ in load_batches(tasks, recognizer.size, prepare, loading, args.batch_size):
            pass

    def detecting() -> None:
        found = sum(matches.error is None for matches in match_photos(recognizer, photos, gallery, loading))
        assert found == len(photos)

    def extracting() -> None:
        failed = extract_views(
            recognizer, tasks, {"my-red-mug": "my red mug."}, loading, lambda t: folder / f"{t.photo.path.stem}.pt", 0
        )
        assert not failed

    sides = {"bare passes": bare, "photos alone": preparing, "extraction": extracting, "detection": detecting}
    counts = dict.fromkeys(sides, len(photos))
    if args.released:
        whole = recognizer if args.dtype == "float32" else Recognizer(replace(settings, dtype="float32"))
        few = photos[: args.released_photos]
        sides["released way"], counts["released way"] = released_way(whole, few, gallery), len(few)
        released_way(whole, few[:1], gallery)()  # enough to warm up; all of them would take minutes
    for seconds in rounds(sides, args.repeats, warm=["released way"]):
        per_photo = {name: [value / counts[name] for value in values] for name, values in seconds.items()}
        report(args, per_photo, "bare passes", device=str(recognizer.device), note="seconds are per photo")


def released_way(recognizer: Recognizer, photos: list[Photo], gallery: Gallery) -> Callable[[], None]:
    """Detection as the released code does it, by models of fp32."""
    grounder, dino, views = recognizer.grounder, recognizer.features, torch.from_numpy(gallery.descriptors)
    assert grounder is not None

    def run() -> None:
        for photo in photos:
            picture = squash(open_image(photo.path, False), recognizer.size)
            boxes = grounder.propose([grounder.prepare(picture)])[0].boxes_xyxy
            grid = dino([dino.prepare(picture)])[0].cpu()
            masks = draw_masks(np.clip(np.trunc(boxes), 0, recognizer.size), recognizer.size)
            merge(match(pool(grid, masks), views), masks, 0.75)

    return run


if __name__ == "__main__":
    start(main)
