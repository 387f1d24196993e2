"""Shared by the recognition tests: tiny untrained models, miniature data sets in the published layouts, script runs."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # what is compared with was worked out on the CPU

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
Shared = Callable[[str, Callable[[Path], None]], Path]


# --- processes -----------------------------------------------------------------------------------------------------


def script_environment(**extra: str) -> dict[str, str]:
    """The environment of a script: one thread, no network asked for, this checkout's package."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **extra}


def run_script(
    name: str, *args: object, timeout: float = 300, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository as a user would, catching what it prints."""
    command = [sys.executable, str(ROOT / name), *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=script_environment(**(env or {}))
    )


def assert_ran(result: subprocess.CompletedProcess[str], code: int = 0) -> None:
    """The exit code is as expected; what was printed is shown where it is not."""
    assert result.returncode == code, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one ``error:`` sentence that holds the words, no traceback."""
    assert_ran(result, 2)
    errors = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1, result.stderr
    for word in words:
        assert word in errors[0], f"{word!r} not in {errors[0]!r}"


@pytest.fixture(autouse=True)
def hears_ctrl_c() -> Iterator[None]:
    """Jobs in a shell's background start out deaf to it, and what they start as well; scripts are at their end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Make a folder once per test session, however many workers ask for it: ``shared(name, build)``."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def once(name: str, build: Callable[[Path], None]) -> Path:
        folder = base / "shared" / name
        folder.mkdir(parents=True, exist_ok=True)
        done = folder.with_name(f"{name}.done")
        with folder.with_name(f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                build(folder)
                done.touch()
        return folder

    return once


# --- models --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def models(shared: Shared) -> Path:
    """A folder as ``--models`` takes it: grounding/, masks/, features/ of the real architectures, untrained."""

    def build(folder: Path) -> None:
        from pekit.sample.models import write_model

        write_model("grounding", folder / "grounding", seed=1)
        _vary_boxes(folder / "grounding")
        write_model("masks", folder / "masks", seed=2)
        write_model("features", folder / "features", seed=3)

    return shared("models", build)


def _vary_boxes(folder: Path) -> None:
    """Untrained, it lists squares of three sizes; make boxes of every size and shape, some beyond the picture."""
    import torch
    from transformers import GroundingDinoForObjectDetection

    model = GroundingDinoForObjectDetection.from_pretrained(folder)
    heads = {id(head): head for head in [*model.bbox_embed, *model.model.decoder.bbox_embed]}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for head in heads.values():
            last = head.layers[-1]
            last.weight.normal_(0, 0.35, generator=generator)
            last.bias.copy_(torch.tensor([0.0, 0.0, 1.2, 1.2]))
    model.save_pretrained(folder)


# --- photos and data sets ------------------------------------------------------------------------------------------


def picture(seed: int, size: tuple[int, int] = (80, 60), mode: str = "RGB") -> Image.Image:
    """Coloured blocks, different for each seed. Size is width, height in px."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).convert(mode)


def broken(kind: str) -> bytes:
    """A photo with damage that its decoder does not expect: Pillow raises the error named beside it."""
    file = io.BytesIO()
    if kind == "DDS":  # flags of a pixel format that there is not: NotImplementedError
        picture(8).save(file, kind)
        content = bytearray(file.getvalue())
        content[80:84] = (16).to_bytes(4, "little")
        return bytes(content)
    if kind == "JPEG":  # turned by 90 degrees, a resolution that is text: TypeError
        tags = [(0x0112, 3, 1, b"\0\6\0\0"), (0x011A, 2, 4, b"two\0")]
        entries = b"".join(struct.pack(">HHI4s", *tag) for tag in tags)
        exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4)
        picture(8).save(file, kind, exif=exif)
        return file.getvalue()
    return {
        "JPEG2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
        + struct.pack(">I4sQ", 1, b"jp2h", 2**52),  # a header of 2^52 bytes: MemoryError
        "PPM": b"P3 is where the path begins.\n",  # ValueError
        "PNG": b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 3, b"IHDR") + bytes(7),  # ValueError
    }[kind]


def write_photos(folder: Path, names: Sequence[str], seed: int = 0, size: tuple[int, int] = (80, 60)) -> None:
    """Write different photos of these names into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        path = folder / name
        form = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
        picture(seed * 1000 + i, size).save(path, form)


def write_yollava(root: Path, concepts: Sequence[str], train: int = 3, test: int = 2) -> Path:
    """``YoLLaVA/{train,test}/<concept>/<n>.png``; returns the data folder."""
    for c, concept in enumerate(concepts):
        write_photos(root / "YoLLaVA/train" / concept, [f"{n}.png" for n in range(train)], seed=10 + c)
        write_photos(root / "YoLLaVA/test" / concept, [f"{n}.png" for n in range(test)], seed=110 + c)
    return root


def write_myvlm(root: Path, concepts: Sequence[str], photos: int = 4) -> Path:
    """``myvlm/data/<concept>/<concept>_<n>.jpg``; returns the data folder."""
    for c, concept in enumerate(concepts):
        names = [f"{concept}_{n}.jpg" for n in range(photos)]
        write_photos(root / "myvlm/data" / concept, names, seed=20 + c)
    return root


SPLITS = ("Positive", "Fake", "Negative (Hard)", "Negative (Other)")


def write_this_is_my(root: Path, concepts: Sequence[str], train: int = 2, test: int = 2) -> Path:
    """``This-is-My-Img/Single-concept`` with all four test splits; returns the data folder."""
    single = root / "This-is-My-Img/Single-concept"
    for c, concept in enumerate(concepts):
        write_photos(single / "train" / concept, [f"v{n}.png" for n in range(train)], seed=30 + c)
        for s, split in enumerate(SPLITS):
            names = [f"q{n}.png" for n in range(test)]
            write_photos(single / "test" / split / concept, names, seed=200 + 10 * s + c)
    return root


def write_multi(root: Path, concepts: Sequence[str], pairs: Sequence[str], train: int = 2, test: int = 2) -> Path:
    """``This-is-My-Img/Multi-concept`` with folders ``A_and_B``; returns the data folder."""
    multi = root / "This-is-My-Img/Multi-concept"
    for c, concept in enumerate(concepts):
        write_photos(multi / "train" / concept, [f"v{n}.png" for n in range(train)], seed=40 + c)
    for p, pair in enumerate(pairs):
        write_photos(multi / "test" / pair, [f"{n}.png" for n in range(test)], seed=300 + p)
    return root


SEED = 42  # of the sample


@pytest.fixture(scope="session")
def sample(shared: Shared) -> Path:
    """The sample benchmark as the command writes it."""

    def build(folder: Path) -> None:
        command = [sys.executable, "-m", "pekit.sample", "--out", str(folder), "--seed", str(SEED)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=script_environment())
        assert result.returncode == 0, result.stderr
        assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
            "myvlm",
            "yollava",
            "this-is-my single-concept",
            "this-is-my multi-concept",
        ]

    return shared("sample", build)


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No key or address in the environment, and a working folder of the test's own."""
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "OPENAI_BASE_URL", "VLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- runs that several tests look at -------------------------------------------------------------------------------

CONCEPTS = ("pig-cup", "lamp", "teddy-plush")
THRESHOLDS = "0.4,0.6,0.85"
TINY = ("--dino_img_size", 224, "--num_workers", 0)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable:
    """Run a script's ``main`` in this process, which spares the imports: ``call(main, *args)``."""

    def run(main: Callable[[list[str]], int], *args: object) -> subprocess.CompletedProcess[str]:
        argv = [str(arg) for arg in args]
        capsys.readouterr()
        caplog.clear()
        caplog.set_level("INFO")
        try:
            code = main(argv)
        except SystemExit as leave:
            code = leave.code  # type: ignore[assignment]
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(argv, code, printed.out, printed.err + caplog.text)

    return run


def run_folder(save_folder: Path) -> Path:
    """The folder of the only run."""
    (folder,) = (save_folder / "runs").iterdir()
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Relative name -> content of every file that is not hidden."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="session")
def box_run(shared: Shared, models: Path) -> Path:
    """yollava with box masks at full size: data/, features/, results/, what the scripts printed (.out, .err)."""

    def build(folder: Path) -> None:
        write_yollava(folder / "data", CONCEPTS, train=4, test=2)
        common = ("--dataset", "yollava", "--data_folder", folder / "data", "--features_folder", folder / "features")
        common = (*common, "--models", models, "--n_training_views", 3, "--num_workers", 0)
        detect = ("--detect_thresh", THRESHOLDS, "--save_folder", folder / "results")
        for name, options in (("extraction.py", ()), ("detection.py", detect)):
            result = run_script(name, *common, *options)
            assert_ran(result)
            (folder / f"{name}.out").write_text(result.stdout)
            (folder / f"{name}.err").write_text(result.stderr)

    return shared("box", build)


@pytest.fixture(scope="session")
def sam_run(shared: Shared, models: Path) -> Path:
    """yollava with SAM masks and augmentations, batched, shuffled and with workers: data/, features/."""

    def build(folder: Path) -> None:
        write_yollava(folder / "data", CONCEPTS, train=2, test=2)
        options = ("--data_folder", folder / "data", "--features_folder", folder / "features", "--models", models)
        options = (*options, "--grounding_sam", "--variation", "augment", "--n_augment", 2, "--n_training_views", 2)
        options = (*options, "--batch_size", 3, "--num_workers", 2, "--shuffle", "--dino_img_size", 224)
        from pekit.cli.extraction import main

        assert main(["--dataset", "yollava", *map(str, options)]) == 0

    return shared("sam", build)
