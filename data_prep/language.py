"""In which language a caption is.

``py3langid`` (Lui & Baldwin 2012; maintained, BSD, one small package with its model in it, no network) tells 97
languages apart from the letters alone and gives the same answer every time; the better detectors bring a hundred
megabytes, and ``langdetect`` is not deterministic. A caption of three words is little to go by, so all captions of a
picture are looked at together, and what stays doubtful is ``und`` (undetermined) and not a guess.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from clipkit.errors import ClipkitError

UNDETERMINED = "und"
_MIN_LETTERS = 12  # below, in a script that many languages share, it is a guess
_MIN_PROBABILITY = 0.6


def can_detect() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("py3langid") is not None


def require() -> None:
    """
    Raises:
        ClipkitError: the package is not there.
    """
    if not can_detect():
        raise ClipkitError('to tell languages apart, the package py3langid is needed: pip install "clipkit[prepare]"')


def language_of(captions: Sequence[str]) -> str:
    """ISO 639-1 code of the language that ``captions`` are in, or ``und``."""
    text = " ".join(captions)
    letters = sum(character.isalpha() for character in text)
    if letters < _MIN_LETTERS and text.isascii():
        return UNDETERMINED
    code, probability = _identifier().classify(text.lower())
    return str(code) if math.isfinite(probability) and probability >= _MIN_PROBABILITY else UNDETERMINED


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
