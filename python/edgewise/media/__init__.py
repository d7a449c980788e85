"""Images and videos to the patches that the vision tower reads."""

from edgewise.media.errors import MediaError
from edgewise.media.group import FrameGroup
from edgewise.media.image import ImageSource, load_image
from edgewise.media.prepared import PreparedImage, prepare_image
from edgewise.media.prepared_video import PreparedVideo, prepare_video
from edgewise.media.settings import ImageSettings, VideoSettings
from edgewise.media.video import VideoSource, open_video

__all__ = [
    "FrameGroup",
    "ImageSettings",
    "ImageSource",
    "MediaError",
    "PreparedImage",
    "PreparedVideo",
    "VideoSettings",
    "VideoSource",
    "load_image",
    "open_video",
    "prepare_image",
    "prepare_video",
]
