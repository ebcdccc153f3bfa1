"""Why a photo is not taken: stable codes, and sentences and tips for the person who took it.

::

    PhotoRejected (a DomainError)
     ├── PhotoTooLarge       413
     ├── PhotoUnsupported    415
     └── PhotoUnprocessable  422
"""

from __future__ import annotations

from dataclasses import dataclass

from server.domain.errors import DomainError, TooLarge, Unprocessable, UnsupportedMediaType


class PhotoRejected(DomainError):
    """A photo is not taken; ``extra["tip"]`` says how to do better."""


class PhotoTooLarge(PhotoRejected, TooLarge):
    """Too many bytes or pixels."""


class PhotoUnsupported(PhotoRejected, UnsupportedMediaType):
    """Not one of the formats taken."""


class PhotoUnprocessable(PhotoRejected, Unprocessable):
    """Understood, and not usable."""


@dataclass(frozen=True)
class _Reason:
    kind: type[PhotoRejected]
    sentence: str
    tip: str


FORMATS = "JPEG, PNG, HEIC, WebP, AVIF, GIF, BMP and TIFF"

REASONS: dict[str, _Reason] = {
    "too_large": _Reason(
        PhotoTooLarge,
        "The file has more than the {max_mib:g} MiB that are taken.",
        "Send it in a smaller size; 2048 pixels along the long side are enough.",
    ),
    "too_many_pixels": _Reason(
        PhotoTooLarge,
        "The photo says it has {width} x {height} pixels, more than this server opens.",
        "Send it in a smaller size; 2048 pixels along the long side are enough.",
    ),
    "unsupported_format": _Reason(
        PhotoUnsupported,
        "This file is not a photo in a format that is taken.",
        f"{FORMATS} are taken. A screenshot of the photo works too.",
    ),
    "empty_file": _Reason(
        PhotoUnprocessable,
        "The file is empty.",
        "The transfer was probably cut off. Choose the photo again.",
    ),
    "damaged_image": _Reason(
        PhotoUnprocessable,
        "The file is damaged and cannot be opened.",
        "The transfer was probably cut off. Choose the photo again or take a new one.",
    ),
    "too_complex": _Reason(
        PhotoUnprocessable,
        "Opening this file takes more time or memory than a photo may.",
        "Take a new photo with the camera app, or send a screenshot of this one.",
    ),
    "too_small": _Reason(
        PhotoUnprocessable,
        "The photo has {width} x {height} pixels; {min_side_px} on the short side are needed.",
        "Send the photo itself rather than its preview.",
    ),
    "too_dark": _Reason(
        PhotoUnprocessable,
        "The photo is black nearly everywhere.",
        "Switch a light on, or check that nothing covers the lens.",
    ),
    "too_bright": _Reason(
        PhotoUnprocessable,
        "The photo is white nearly everywhere.",
        "Turn away from the light, or tap the object so that the camera adjusts.",
    ),
    "blurred": _Reason(
        PhotoUnprocessable,
        "The photo looks blurred. Take it again?",
        "Hold still, tap the object to focus, and wipe the lens.",
    ),
    "near_duplicate": _Reason(
        PhotoUnprocessable,
        "Nearly the same photo by the same person is here already.",
        "Move the object, the light or yourself, and take another one.",
    ),
    "other_label": _Reason(
        PhotoUnprocessable,
        "This very photo is here already, as {label}.",
        "Withdraw the earlier one if its label was wrong, then send this one again.",
    ),
    "withdrawn_photo": _Reason(
        PhotoUnprocessable,
        "The person who took this photo has withdrawn it.",
        "Take a photo of your own.",
    ),
}


def rejection(code: str, **facts: object) -> PhotoRejected:
    """Return the error for ``code``, its sentence filled with the facts."""
    reason = REASONS[code]
    return reason.kind(reason.sentence.format(**facts), code=code, tip=reason.tip)
