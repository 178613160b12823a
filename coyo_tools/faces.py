"""How many faces are in a picture, by one of OpenCV's two detectors.

COYO's ``num_faces`` is SCRFD's count. SCRFD's weights are for research only and no part of OpenCV,
so figures differ: these are for telling pictures with people from others in one's own data, never
to be mixed with COYO's. ``haar`` comes with OpenCV (Viola and Jones 2001: frontal faces, many
misses, some false alarms); YuNet (Wu et al. 2023) is far better and wants its weights as a file.

Left out: where the faces are, and whose.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from coyo_tools.errors import MissingExtraError, SourceError

HAAR = "haar"
_CASCADE = "haarcascade_frontalface_default.xml"
# OpenCV's own defaults for the cascade but for five neighbours, its tutorial's choice: three give
# twice the false alarms on textbook drawings.
_NEIGHBOURS = 5
# Longest side that faces are looked for in: YuNet was trained on faces of 10 to 300 pixels.
_LONGEST = 640

_Detect = Callable[[npt.NDArray[np.uint8]], int]


def count_faces(image: Image.Image, detector: str) -> int:
    """Count the faces in an upright picture, looked at with its longest side at most 640 pixels.

    Args:
        image: the picture.
        detector: ``haar``, or the path of YuNet's weights (.onnx).

    Raises:
        SourceError: the weights can't be read, or are not YuNet's.
    """
    rgb = image.convert("RGB")
    rgb.thumbnail((_LONGEST, _LONGEST))
    return load_detector(detector)(np.asarray(rgb))


@lru_cache(maxsize=1)
def load_detector(detector: str) -> _Detect:
    """Return what counts the faces in (height, width, 3) RGB bytes.

    Raises:
        SourceError: the weights can't be read, or are not YuNet's.
        MissingExtraError: OpenCV is not installed.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingExtraError("--faces", "train", "OpenCV") from error

    cv2.setNumThreads(1)
    if detector == HAAR:
        folder = Path(cv2.__file__).with_name("data")
        cascade = cv2.CascadeClassifier(str(folder / _CASCADE))

        def by_cascade(rgb: npt.NDArray[np.uint8]) -> int:
            grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
            return len(cascade.detectMultiScale(grey, minNeighbors=_NEIGHBOURS))

        return by_cascade
    if not Path(detector).is_file():
        raise SourceError(
            f"There are no face detector's weights at {detector}.",
            f"Give {HAAR}, or the file of YuNet's weights (face_detection_yunet_*.onnx).",
        )
    try:
        net = cv2.FaceDetectorYN.create(detector, "", (320, 320))
        net.detect(np.zeros((320, 320, 3), dtype=np.uint8))
    except cv2.error as error:
        raise SourceError(
            f"{detector} is not what OpenCV's FaceDetectorYN reads: {str(error).strip()[:200]}",
            f"Give {HAAR}, or the file of YuNet's weights (face_detection_yunet_*.onnx).",
        ) from error

    def by_net(rgb: npt.NDArray[np.uint8]) -> int:
        net.setInputSize((rgb.shape[1], rgb.shape[0]))
        _, faces = net.detect(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        return 0 if faces is None else len(faces)

    return by_net
