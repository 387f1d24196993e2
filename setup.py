"""Installs the package and its console commands; requirements.txt has the tested versions."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "pekit" / "__init__.py").read_text(encoding="utf-8")).group(1)

setup(
    name="pekit",
    version=VERSION,
    description="Personalization Toolkit: training-free personalization of large vision-language models",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["pekit", "pekit.*"]),
    package_data={"pekit": ["concepts.json", "sample/checkpoints/**/*"]},
    install_requires=[
        "torch>=2.9",
        "torchvision>=0.24",
        "transformers>=5.17,<6",
        "segment-anything>=1.0",
        "groundingdino-py>=0.4",
        "numpy>=2.0",
        "pillow>=11",
        "openai>=2",
        "tqdm>=4.66",
        "albumentations>=2.0.8,<3",
        "safetensors>=0.6",
        "accelerate>=1.10",
    ],
    extras_require={"test": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.14", "mypy>=1.18"]},
    entry_points={
        "console_scripts": [
            "pekit-extraction=pekit.start:extraction",
            "pekit-detection=pekit.start:detection",
            "pekit-vqa=pekit.start:vqa",
        ]
    },
)
