"""Restart markers: put into JPEGs by jpegtran, which moves their coefficients to a new file and changes no pixel.

They are places at which decoding can begin, every few blocks of each row, so that training reads only those parts of a
file that a crop touches (`data_pipeline.pixels.excerpt`). Any reader of JPEGs can read such a file.
"""

from __future__ import annotations

import math
import subprocess
from functools import cache

import numpy as np
import simplejpeg

from configs.base import ConfigError
from data_pipeline.pixels.decode import MAX_PIXELS
from data_pipeline.pixels.jpeg import MAX_SCANS
from data_pipeline.pixels.jpeg_frame import JpegFrame, read_frame

_PROGRAM = "jpegtran"
_PIECE_WIDTH = 64
"""Pixels between two markers that are aimed at: half as many cost another 0.7 % of a file, and gain little."""


@cache
def jpegtran_version() -> str:
    """What decides about its bytes; ConfigError where it is not installed, or is one that cannot do this."""
    try:
        told = subprocess.run([_PROGRAM, "-version"], capture_output=True, text=True, check=False).stderr
        tried = _run(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)), interval=1)
    except OSError as error:
        raise ConfigError(
            f"--restart-markers: {_PROGRAM} cannot be run ({error.strerror}); it comes with libjpeg-turbo 2.1 or later "
            "(Debian's package libjpeg-turbo-progs, Fedora's libjpeg-turbo-utils, conda's libjpeg-turbo)"
        ) from error
    if tried.returncode:
        complaint = (tried.stderr.decode(errors="replace").strip() or told).splitlines()[0]
        raise ConfigError(
            f"--restart-markers: this {_PROGRAM} cannot do it ({complaint}): the one of libjpeg-turbo 2.1 or later is "
            "needed"
        )
    return told.strip()


def with_restart_markers(content: bytes) -> bytes:
    """The same image with markers; a progressive JPEG becomes a sequential one, whose parts can be decoded.

    What is no JPEG keeps its bytes, and so does one that cannot be taken apart without a warning.
    """
    frame = read_frame(content)
    if frame is None or frame.height * frame.width > MAX_PIXELS:
        return content
    made = _run(content, interval=_interval(frame))
    return content if made.returncode else made.stdout


def _run(content: bytes, *, interval: int) -> subprocess.CompletedProcess[bytes]:
    options = [
        "-strict",
        "-maxscans",
        str(MAX_SCANS),
        "-copy",
        "all",
        "-optimize",
        "-restart",
        f"{interval}B",
    ]
    return subprocess.run([_PROGRAM, *options], input=content, capture_output=True, check=False)


def _interval(frame: JpegFrame) -> int:
    """Units between two markers: a divisor of those in a row, so that they stand at the same places in each."""
    units, wanted = frame.units_per_row, _PIECE_WIDTH / frame.unit_width
    divisors = [number for number in range(1, units + 1) if units % number == 0]
    return min(divisors, key=lambda number: abs(math.log(number / wanted)))
