"""The sample DINOv2: architecture, training targets, and what the shipped checkpoint reaches."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, Dinov2Model

from pekit.sample.drawing import CATEGORIES, COLOURS, PATTERNS, POOLS, mask_box, random_instance
from pekit.sample.evaluate.features import PAIRS, evaluate
from pekit.sample.models import write_model
from pekit.sample.models.features import POSITION_CHANNELS, WIDTH, attention_weights, sine_positions
from pekit.sample.train import features
from pekit.sample.train.features import Batch, looks_loss, patch_tokens, region_loss, region_means
from pekit.sample.train.groups import Group, draw_group, imitate
from pekit.sample.train.regions import box_patches, half_box, jitter, scene_regions
from pekit.sample.train.scenes import open_bank

CHECKPOINT = Path(__file__).parents[1] / "pekit" / "sample" / "checkpoints" / "features"


def test_build_is_deterministic_and_loads_by_its_own_class(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        write_model("features", tmp_path / name, seed)
    one, two, three = (AutoModel.from_pretrained(tmp_path / name) for name in ("one", "two", "three"))
    assert isinstance(one, Dinov2Model)
    weights = one.state_dict()
    assert all(torch.equal(weights[name], other) for name, other in two.state_dict().items())
    key = "embeddings.patch_embeddings.projection.weight"
    assert not torch.equal(weights[key], three.state_dict()[key])


def test_build_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    write_model("features", tmp_path, 7)
    assert torch.equal(torch.rand(1), expected)


def test_model_gives_a_grid_of_37_by_37_at_the_pipelines_size(tmp_path: Path) -> None:
    write_model("features", tmp_path, 0)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    picture = np.full((300, 400, 3), 255, np.uint8)
    pixels = processor(images=picture, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 518, 518)
    white = (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(pixels[0, :, 100, 100].numpy(), white, rtol=1e-4)
    with torch.inference_mode():
        tokens = AutoModel.from_pretrained(tmp_path).eval()(pixel_values=pixels).last_hidden_state
    assert tokens.shape == (1, 1 + 37 * 37, WIDTH)


def test_heads_start_out_looking_at_a_neighbour(tmp_path: Path) -> None:
    write_model("features", tmp_path, 0)
    model = Dinov2Model.from_pretrained(tmp_path).eval()
    places = model.embeddings.position_embeddings[0, 1:]
    looked_at = {}
    with torch.inference_mode():
        for number, layer in enumerate(model.encoder.layer):
            query, key = (places @ weight.T for weight in attention_weights(layer)[:2])
            for head in range(4):
                own = slice(head * POSITION_CHANNELS, (head + 1) * POSITION_CHANNELS)
                target = (query[:, own] @ key[:, own].T).argmax(1).reshape(37, 37)[5:-5, 5:-5]
                rows, columns = torch.arange(5, 32)[:, None], torch.arange(5, 32)
                offset = torch.stack([target // 37 - rows, target % 37 - columns], -1).flatten(0, 1).unique(dim=0)
                assert len(offset) == 1  # the same wherever the patch lies
                looked_at[number, head] = tuple(offset[0].tolist())
    assert [looked_at[0, head] for head in range(4)] == [(0, 1), (0, -1), (1, 0), (-1, 0)]
    assert [looked_at[3, head] for head in range(4)] == [(2, 2), (2, -2), (-2, 2), (-2, -2)]
    assert looked_at[4, 0] == (0, 3)


def test_parts_of_pictures_lie_where_they_are_said_to(tmp_path: Path) -> None:
    write_model("features", tmp_path, 0)
    model = Dinov2Model.from_pretrained(tmp_path).eval()
    whole = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    nothing = _batch([0], [0], [[True, False]])
    with torch.inference_mode():
        expected = model(pixel_values=whole).last_hidden_state[:, 1:]
        found = patch_tokens(model, replace(nothing, pixels=whole, corner=torch.zeros(1, 2, dtype=torch.int64)))
        torch.testing.assert_close(found, expected)
        # Without attention, what is said of a part is what is said of it within the whole.
        model.encoder.layer = model.encoder.layer[:0]
        part = whole[:, :, 14 * 3 : 14 * 7, 14 * 20 : 14 * 24]
        found = patch_tokens(model, replace(nothing, pixels=part, corner=torch.tensor([[3, 20]])))
        expected = model(pixel_values=whole).last_hidden_state[0, 1:].unflatten(0, (37, 37))[3:7, 20:24]
        torch.testing.assert_close(found[0].unflatten(0, (4, 4)), expected)


@pytest.mark.parametrize(
    "names",
    [
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        ("attention.query", "attention.key", "attention.value", "output.dense"),
    ],
)
def test_attention_is_found_by_the_names_of_any_release(names: tuple[str, ...]) -> None:
    layer = torch.nn.Module()
    parts = [torch.nn.Linear(2, 2) for _ in names]
    for name, part in zip(names, parts, strict=True):
        *above, own = ["attention", *name.split(".")]
        holder = layer
        for step in above:
            if step not in dict(holder.named_children()):
                holder.add_module(step, torch.nn.Module())
            holder = holder.get_submodule(step)
        holder.add_module(own, part)
    assert all(found is part.weight for found, part in zip(attention_weights(layer), parts, strict=True))


def test_sine_positions_name_row_and_column() -> None:
    places = sine_positions(4, 16).reshape(4, 4, 16)
    # The lowest frequency is half a turn across the picture: channel 0 is the sine of the row's, 8 of the column's.
    assert places[1, 3, 0] == pytest.approx(np.sin(np.pi * 1.5 / 4), abs=1e-6)
    assert places[1, 3, 8] == pytest.approx(np.sin(np.pi * 3.5 / 4), abs=1e-6)
    assert len(torch.unique(places.reshape(16, 16), dim=0)) == 16


@pytest.mark.parametrize("box", [(0, 0, 56, 56), (13.9, 14.2, 28.0, 42.9), (-9, 20, 15, 300), (15, 15, 27, 27)])
def test_box_patches_are_those_of_the_drawn_box(box: tuple[float, ...]) -> None:
    drawn = np.zeros((56, 56), bool)
    x1, y1, x2, y2 = (int(min(max(corner, 0), 56)) for corner in box)
    drawn[y1:y2, x1:x2] = True
    np.testing.assert_array_equal(box_patches(np.array(box), 56), drawn[::14, ::14])


def test_boxes_around_a_mask() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    box = mask_box(mask)
    np.testing.assert_array_equal(box, [3, 2, 9, 5])
    rng = np.random.default_rng(0)
    for _ in range(50):
        moved = np.abs(jitter(box, 0.1, rng) - box)
        assert (moved <= [0.6, 0.3, 0.6, 0.3]).all()
        half = half_box(box, rng)
        area = (half[2] - half[0]) * (half[3] - half[1])
        assert 0.33 <= area / 18 <= 0.6
        assert (half[:2] >= box[:2]).all() and (half[2:] <= box[2:]).all()


def test_regions_know_what_they_hold() -> None:
    label = np.zeros((140, 140), np.uint8)
    label[14:70, 14:70] = 1
    label[84:126, 84:126] = 3
    for region in scene_regions(label, np.ones(256, bool), np.random.default_rng(0)):
        cells = label[::14, ::14]
        for number in (1, 3):
            share = (region.patches & (cells == number)).sum() / (cells == number).sum()
            if share > 0.15:
                assert number - 1 in region.holds
            if share == 0:
                assert number - 1 not in region.holds
        assert region.instance in (-1, *region.holds)


def test_imitations_have_the_same_colours_and_look_otherwise() -> None:
    rng = np.random.default_rng(5)
    closest = 0
    for pool in POOLS:
        for _ in range(60):
            one = random_instance(rng, pool=pool)
            other = imitate(rng, one)
            assert (other.category, other.pool) == (one.category, pool)
            assert (other.colour, other.accent, other.pattern) != (one.colour, one.accent, one.pattern)
            closest += {other.colour, other.accent} == {one.colour, one.accent} and other.proportions == one.proportions
    assert closest > 140  # the small pools do not hold one for every instance


def test_groups_to_learn_from_hold_close_imitations_and_those_to_measure_by_do_not() -> None:
    held = {True: 0, False: 0}
    for number in range(20):
        for imitated in held:
            first, *others = draw_group((3, number), side=56, n_scenes=1, imitated=imitated).instances
            assert len(others) == 7
            close = [one for one in others if one.proportions == first.proportions and one.category == first.category]
            assert all({one.colour, one.accent} == {first.colour, first.accent} for one in close)
            held[imitated] += len(close)
    assert held == {True: 20, False: 0}


def test_a_steps_batch_is_the_same_whoever_prepares_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever worker it falls to, and whatever that has prepared before, or not: a run may have been resumed."""
    drawn: list[int] = []

    def draw(seed: tuple[int, int]) -> Group:
        drawn.append(seed[1])
        return draw_group(seed, side=56, n_scenes=2)

    monkeypatch.setattr(features, "draw_group", draw)
    monkeypatch.setattr(features, "GROUPS_KEPT", 3)
    bank = open_bank(tmp_path, 3, n_scenes=10, size=56, workers=1)
    second = range(26, 60)  # .42 of the steps learn the looks of single objects
    alone, one_of_two, one_of_four = (features.Steps(bank, 3, 60, workers) for workers in (0, 2, 4))
    batches = [alone[step] for step in second]
    assert len(drawn) == len(set(drawn)) and set(drawn) <= {26, *range(28, 60, 4)}
    for steps, order in ((one_of_two, second[::2]), (one_of_four, second[::-1])):
        for step in order:
            again = steps[step]
            for field in fields(again):
                assert torch.equal(getattr(again, field.name), getattr(batches[step - 26], field.name)), (step, field)
    drawn.clear()
    for seed in range(20):  # what a step chooses among: the last three
        features.Steps(bank, seed, 60, 1)[35]
    assert set(drawn) == {26, 28, 32}


def _batch(scene: list[int], instance: list[int], shows: list[list[bool]]) -> Batch:
    return Batch(
        pixels=torch.zeros(2, 3, 28, 28),
        corner=torch.zeros(2, 2, dtype=torch.int64),
        scene=torch.tensor(scene),
        pooling=torch.ones(len(scene), 4) / 4,
        instance=torch.tensor(instance),
        shows=torch.tensor(shows),
        visible=torch.tensor([[0, -1, -1, 0], [1, -1, -1, -1]]),
        looks=torch.tensor([[0, 1, 2, 3], [13, 11, 0, 5]]),
    )


def test_loss_counts_the_pairs_it_says() -> None:
    # Two scenes: instance 0 in both, instance 1 and a background box in the second.
    batch = _batch([0, 1, 1, 1], [0, 0, 1, -1], [[True, False], [True, False], [False, True], [False, False]])
    unit = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    cosine = (unit @ unit.T).double().numpy()
    pulls = [np.log1p(np.exp(20 * (0.79 - cosine[i, j]))) / 20 for i, j in ((0, 1), (1, 0))]
    wrong = {0: [2], 1: [2], 2: [0, 1], 3: [0, 1, 2]}
    pushes = [np.log1p(sum(np.exp(20 * (cosine[i, j] - 0.51)) for j in js)) / 20 for i, js in wrong.items()]
    ranks = [
        -np.log(np.exp(cosine[0, 1] / 0.07) / sum(np.exp(cosine[i, j] / 0.07) for j in (1 - i, 2))) for i in (0, 1)
    ]
    expected = 8 * np.mean(pulls) + 4 * np.mean(pushes) + 0.25 * np.mean(ranks)
    assert region_loss(unit, batch).item() == pytest.approx(expected, rel=1e-4)


def test_means_are_of_the_right_scenes_patches() -> None:
    tokens = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    batch = _batch([0, 1, 1], [0, 0, 1], [[True, False]] * 3)
    batch.pooling[2] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(
        region_means(tokens, batch), torch.stack([tokens[0].mean(0), tokens[1].mean(0), tokens[1, 1]])
    )


def test_looks_are_asked_of_patches_and_boxes() -> None:
    batch = _batch([0, 1], [0, -1], [[True, False], [False, False]])
    sizes = [1 + len(CATEGORIES), len(COLOURS), len(COLOURS), len(PATTERNS)]
    table = torch.randn(8, sum(sizes), generator=torch.Generator().manual_seed(2))  # the logits of 8 patches
    tokens, head = torch.eye(8).reshape(2, 4, 8), torch.nn.Linear(8, sum(sizes), bias=False)
    head.weight.data = table.T.contiguous()

    def surprise(logits: np.ndarray, which: list[int], part: int) -> float:
        odds = np.exp(logits[sum(sizes[:part]) : sum(sizes[: part + 1])])
        return float(-np.log(odds[which[part] + (part == 0)] / odds.sum()))

    looks = [[0, 1, 2, 3], [0, 1, 2, 3], [13, 11, 0, 5]]
    logits = table.double().numpy()
    on = [logits[0], logits[3], logits[4]]
    off = [logits[k] for k in (1, 2, 5, 6, 7)]
    either = [surprise(one, which, 0) for one, which in zip(on, looks, strict=True)]
    either += [surprise(one, [-1], 0) for one in off]
    patches = [np.mean([surprise(one, which, k) for one, which in zip(on, looks, strict=True)]) for k in range(4)]
    box = [surprise(logits[:4].mean(0), looks[0], k) for k in range(4)]
    expected = 0.3 * (np.mean(either) + np.sum(patches)) + np.sum(box)
    loss, right = looks_loss(head, tokens, region_means(tokens, batch), batch)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    parts = np.split(logits[:4].mean(0), np.cumsum(sizes)[:-1])
    assert right.tolist() == [float(part.argmax() == looks[0][k] + (k == 0)) for k, part in enumerate(parts)]


def test_shipped_checkpoint_tells_held_out_instances_apart() -> None:
    rows = {row.asked: row.value for row in evaluate(CHECKPOINT, seed=11, n_groups=5)}
    figures = {kind: rows[asked] for kind, (asked, _) in PAIRS.items()}
    # Guards of what is shipped (0.87, 0.02, 0.00 and 0.00 on the card's larger draw), not all of what was aimed at;
    # things of another category in the very same paint are the known weakness there and are left out.
    assert figures["same"] >= 0.80
    assert figures["look-alike"] <= 0.10
    assert figures["other"] <= 0.02
    assert figures["background"] <= 0.02
