"""Images and videos to the patches that the vision tower reads."""

from edgewise.media.errors import MediaError
from edgewise.media.group import FrameGroup
from edgewise.media.image import ImageSource, load_image
from edgewise.media.prepared import PreparedImage, prepare_image
from edgewise.media.settings import ImageSettings, VideoSettings

__all__ = [
    "FrameGroup",
    "ImageSettings",
    "ImageSource",
    "MediaError",
    "PreparedImage",
    "VideoSettings",
    "load_image",
    "prepare_image",
]
