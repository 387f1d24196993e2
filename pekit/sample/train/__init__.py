"""Training of the sample checkpoints on drawn scenes; `python -m pekit.sample.train --help` is the way in."""
