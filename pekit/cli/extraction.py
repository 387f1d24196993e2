"""``extraction.py``: reference photos to stored views."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from pekit import cli, datasets, parallel
from pekit.cli.running import run_script, show, tell_left_out, tell_of_turned
from pekit.records import UserError, counted


def build_parser() -> argparse.ArgumentParser:
    """The options of extraction.py."""
    parser = cli.Parser(
        prog="extraction.py",
        description="Store reference views: find each concept in its photos, keep the DINOv2 patch features under it.",
        parents=[cli.data_options(), cli.model_options()],
        allow_abbrev=False,
    )
    group = parser.add_argument_group("extraction")
    group.add_argument(
        "--split", choices=("train", "test"), default="train", help="Where the reference photos lie (train)."
    )
    group.add_argument(
        "--n_augment", type=cli.positive, default=9, help="Augmented views per photo with --variation augment (9)."
    )
    group.add_argument(
        "--min_mask_area",
        type=cli.natural,
        default=0,
        help="With --grounding_sam: leave a mask of fewer pixels (of the squashed picture) empty (0).",
    )
    cli.add_flag(group, "--shuffle", "Extract in a random order; the views are the same.")
    cli.add_flag(group, "--overwrite", "Make views again that are there, and replace those of other models.")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run extraction.py.

    Returns:
        0, 1 where photos could not be read, 2 for a mistake in options, folders or models, 130 on Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    return run_script(lambda: _extract(args, argv), args)


def _extract(args: argparse.Namespace, argv: list[str]) -> int:
    if args.dataset == "this-is-my" and args.split != "train":
        raise UserError(f"--split {args.split} of this-is-my holds no reference photos: leave it out")
    models, loading = cli.model_settings(args), cli.loading_settings(args)
    concepts = datasets.read_concepts(args.data_folder, args.dataset, args.multi_concept, args.split)
    photos = datasets.reference_photos(
        args.data_folder, args.dataset, args.multi_concept, args.split, concepts, args.n_training_views
    )[: args.limit]

    shard = parallel.current_shard()
    if len(args.device_ids) > 1 and shard.world == 1:
        return parallel.launch(main, argv, args.device, args.device_ids)
    if not (args.exif or shard.rank):
        tell_of_turned(photos)

    from pekit.extracting import ExtractionSettings, run_extraction

    settings = ExtractionSettings(
        folder=cli.views_folder(args),
        split="" if args.dataset == "myvlm" else args.split,
        n_augment=args.n_augment if args.variation == "augment" else 0,
        grounding_sam=args.grounding_sam,
        min_mask_area=args.min_mask_area,
        seed=args.seed,
        shuffle=args.shuffle,
        overwrite=args.overwrite,
        limit=args.limit,
    )
    models = replace(models, device=parallel.shard_device(models.device, args.device_ids, shard))
    with parallel.joined(shard):
        report = run_extraction(concepts, photos, settings, models, loading, shard)
    if shard.rank == 0:
        seen = len({photo.concepts[0] for photo in photos if photo.name not in report.failed})
        of = f"{seen} of the {len(concepts)} concepts" if seen < len(concepts) else counted(seen, "concept")
        show(f"{counted(report.made, 'view')} made, {report.kept} kept, of {of}, in {settings.folder}")
        return tell_left_out(report.failed, len(photos))
    return 0  # were it to fail too, whoever started it would stop the first while that is still writing
