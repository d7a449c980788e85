"""The error of images and videos that cannot be used."""

from __future__ import annotations


class MediaError(ValueError):
    """An image or a video cannot be used. The message names the argument, and the file where there is one."""
