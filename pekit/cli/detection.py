"""``detection.py``: query photos to detections and the paper's recognition metrics."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from pekit import cli, datasets, parallel
from pekit.cli.running import run_script, show, tell_left_out, tell_of_turned
from pekit.records import UserError

MIN_MASK_AREA = {"myvlm": 2000, "this-is-my": 2000, "yollava": 9000}


def build_parser() -> argparse.ArgumentParser:
    """The options of detection.py."""
    parser = cli.Parser(
        prog="detection.py",
        description="Recognize the stored concepts in test photos and report precision and recall.",
        parents=[cli.data_options(), cli.model_options()],
        allow_abbrev=False,
    )
    group = parser.add_argument_group("detection")
    group.add_argument("--task", choices=("detection",), default="detection", help="What to do (detection).")
    group.add_argument(
        "--split", choices=("train", "test", "validation"), default="test", help="Where the query photos lie (test)."
    )
    group.add_argument(
        "--test_split",
        choices=(datasets.POSITIVE, *datasets.NEGATIVE_SPLITS),
        help="Part of this-is-my's single-concept test photos (Positive).",
    )
    group.add_argument(
        "--photos",
        type=cli.folder,
        metavar="FOLDER",
        help="Search all photos in this folder, and in folders inside it, in place of the data set's test photos; what "
        "they show need not be known, so there are no metrics.",
    )
    group.add_argument(
        "--detect_thresh",
        type=cli.thresholds,
        default=(0.75,),
        metavar="T",
        help="Similarity that a proposal must exceed: one value, a list 0.5,0.6,0.75 or a range 0.5:0.9:0.05, "
        "all from one pass of the models (0.75).",
    )
    group.add_argument(
        "--proposals",
        choices=("boxes", "masks"),
        default="boxes",
        help="Grounding DINO's boxes for 'object.', or SAM's automatic masks (boxes).",
    )
    group.add_argument(
        "--min_mask_area",
        type=cli.natural,
        help="With --proposals masks: drop masks of fewer pixels of the squashed picture (2000; yollava 9000).",
    )
    group.add_argument(
        "--box_overlap_thresh",
        type=cli.percent,
        default=100.0,
        metavar="PERCENT",
        help="Of two detections, one inside the other by more than this share, keep the better (100: keep all).",
    )
    cli.add_flag(
        group,
        "--show",
        "Also write each photo with its detections, at the first threshold of several, outlined with name and score "
        "into the run's folder.",
    )
    group.add_argument(
        "--save_folder", type=cli.folder, default=Path("results/"), help="Folder of the results (results/)."
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run detection.py.

    Returns:
        0, 1 where photos could not be read, 2 for a mistake in options, folders, views or models, 130 on Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    return run_script(lambda: _detect(args, argv), args)


def _test_split(args: argparse.Namespace) -> str | None:
    if args.photos:
        if args.test_split:
            raise UserError("--photos takes the place of the test photos: leave --test_split out")
        return None
    positive = datasets.positive_part(args.dataset, args.multi_concept, args.split)
    if args.test_split and not positive:
        raise UserError("--test_split goes with the test photos of single-concept this-is-my: leave it out")
    return args.test_split or positive


def _detect(args: argparse.Namespace, argv: list[str]) -> int:
    test_split = _test_split(args)
    models, loading = cli.model_settings(args), cli.loading_settings(args)
    concepts = datasets.read_concepts(args.data_folder, args.dataset, args.multi_concept)
    if args.photos:
        units = [datasets.Unit(concept.key, (concept.key,)) for concept in concepts]
        photos = datasets.unlabelled_photos(args.photos, args.save_folder)
    else:
        units, photos = datasets.query_photos(
            args.data_folder, args.dataset, args.multi_concept, args.split, test_split, concepts
        )
        datasets.warn_of_unknown(photos, concepts, units)

    shard = parallel.current_shard()
    if len(args.device_ids) > 1 and shard.world == 1:
        return parallel.launch(main, argv, args.device, args.device_ids)

    if not (args.exif or shard.rank):
        tell_of_turned(photos)

    from pekit.detecting import run_detection
    from pekit.detection_results import DetectionSettings

    settings = DetectionSettings(
        dataset=args.dataset,
        multi_concept=args.multi_concept,
        split=args.split,
        test_split=test_split,
        variation=args.variation,
        n_training_views=args.n_training_views,
        thresholds=args.detect_thresh,
        proposals=args.proposals,
        min_mask_area=MIN_MASK_AREA[args.dataset] if args.min_mask_area is None else args.min_mask_area,
        box_overlap_thresh=args.box_overlap_thresh,
        seed=args.seed,
        limit=args.limit,
        views_folder=cli.views_folder(args),
        save_folder=args.save_folder,
        show=args.show,
        photos=args.photos,
    )
    models = replace(models, device=parallel.shard_device(models.device, args.device_ids, shard))
    with parallel.joined(shard):
        report = run_detection(concepts, units, photos, settings, models, loading, shard)
    if shard.rank == 0:
        show("\n\n".join(report.tables))
        show(f"\nresults in {report.folder}")
        return tell_left_out(report.failed, report.photos)
    return 0  # were it to fail too, whoever started it would stop the first while that is still writing
