"""The scripts as processes: Ctrl-C at any time, outputs that end early or have few letters."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, assert_ran, run_script, script_environment

from pekit import cli, start
from pekit.cli import running
from pekit.files import naming


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("raise KeyboardInterrupt", 130),  # while it is imported
        ("def main():\n    raise KeyboardInterrupt", 130),  # while its options are read
        ("def main():\n    return 3", 3),
    ],
)
def test_ctrl_c_is_quiet_from_the_first_import_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int
) -> None:
    (tmp_path / "a_script.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as ended:
        start._run("a_script")
    assert ended.value.code == code
    assert (signal.getsignal(signal.SIGINT) is signal.SIG_IGN) == (code == 3)
    sys.modules.pop("a_script", None)


HOLDS_BACK = """
import os, signal, threading, time
from multiprocessing import get_context
from pekit.start import interrupts_held_back

threading.Thread(target=time.sleep, args=(60,), daemon=True).start()  # as libraries have them: it holds nothing back
worker = get_context("spawn").Process(target=time.sleep, args=(60,))
try:
    with interrupts_held_back():
        worker.start()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        print("whole")
    print("not reached")
except KeyboardInterrupt:
    print("told")
os.kill(worker.pid, signal.SIGINT)
worker.join(2)
print(worker.exitcode)
worker.kill()
signal.raise_signal(signal.SIGINT)
"""


def test_ctrl_c_waits_while_processes_begin_and_they_never_hear_it() -> None:
    result = subprocess.run(
        [sys.executable, "-c", HOLDS_BACK], cwd=ROOT, env=script_environment(), capture_output=True, text=True
    )
    assert result.stdout.split() == ["whole", "told", "None"]
    assert result.returncode == -signal.SIGINT  # as before the block


@pytest.mark.parametrize("script", ["extraction", "detection", "vqa"])
def test_scripts_are_modules_too(script: str) -> None:
    code = f"import {script}, pekit.cli.{script} as own; assert {script}.main is own.main and {script}.build_parser"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=script_environment(), capture_output=True, text=True
    )
    assert_ran(result)


def printing(text: str) -> list[str]:
    """A script that prints a result longer than a pipe holds, and ends with 1."""
    work = f"[show({text}), show('end'), 1][-1]"
    lines = "import sys, argparse; from pekit.cli.running import run_script, show; "
    return [sys.executable, "-c", f"{lines}sys.exit(run_script(lambda: {work}, argparse.Namespace(offline=False)))"]


def test_a_reader_that_leaves_early_is_no_mistake() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        printing("'x' * 1000000"), stdout=writing, stderr=subprocess.PIPE, text=True, env=script_environment()
    )
    os.close(writing)
    assert result.returncode == 1 and result.stderr == ""


def test_letters_that_the_output_has_not_are_written_as_numbers() -> None:
    environment = script_environment(PYTHONIOENCODING="ascii")
    result = subprocess.run(printing("'\\u00e9m\\u00fc'"), capture_output=True, text=True, env=environment)
    assert_ran(result, 1)
    assert result.stdout == "\\xe9m\\xfc\nend\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/runs"), ["/x/runs", "--save_folder"]),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), ["/x", "--data_folder or --save_folder"]),
        (PermissionError(errno.EACCES, "Permission denied", "/data/a/b"), ["/data/a/b", "another --data_folder\n"]),
        (PermissionError(errno.EACCES, "Permission denied", "r/b"), ["r/b", "another --save_folder\n"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x"), ["shorter name"]),
        (OSError(errno.ENOSPC, "No space left", "/x/a.jsonl"), ["/x/a.jsonl", "make room", "--resume goes on"]),
        (MemoryError(), ["too little memory", "--dino_img_size"]),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ["too little memory"]),
    ],
)
def test_what_the_system_refuses_comes_with_the_mend(call: Callable, error: Exception, words: list[str]) -> None:
    def refused() -> int:
        raise error

    options = argparse.Namespace(offline=False, save_folder=Path("r"), data_folder=Path("/data"))
    result = call(lambda _: running.run_script(refused, options, "--resume"))
    assert_ran(result, 2)
    [line] = result.stderr.splitlines(keepends=True)
    for word in ("error: ", *words):
        assert word in line


def test_a_file_that_could_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"answers\.jsonl"), naming(tmp_path / "answers.jsonl"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_users_folder_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.folder("~/f") == tmp_path / "f"
    assert cli.model_set("~/models")["features"] == str(tmp_path / "models/features")
    (tmp_path / "file").touch()
    with pytest.raises(argparse.ArgumentTypeError, match="is a file"):
        cli.folder("~/file")
    assert cli.folder("x" * 300).name == "x" * 300
    with pytest.raises(argparse.ArgumentTypeError, match="UTF-8"):
        cli.path("fr\udcfc.json")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--batch_size", "99999999999999999999"),
        ("--seed", "\u00b2"),
        ("--detect_thresh", "0:1:1e-7"),
        ("--device_ids", "0,0"),
        ("--device_ids", "-1"),
        ("--device_ids", ""),
        ("--models", ""),
        ("--models", "~nosuchuser/m"),
        ("--features_folder", "~nosuchuser/f"),
        ("--dino_model", " "),
    ],
)
def test_values_that_make_no_sense(option: str, value: str) -> None:
    result = run_script("detection.py", "--dataset", "yollava", f"{option}={value}")
    assert_ran(result, 2)
    [line] = result.stderr.splitlines()
    assert f"argument {option}: " in line
