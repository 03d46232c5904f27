"""From class names to a classifier: prompts, and the mean of their embeddings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.evaluation.arrays import as_numpy

# Named sets of prompts. "none" is the bare name, "photo" the usual single prompt, "default" a short mixture
# for pictures of unknown kind: each prompt moves the embedding a little its own way, the mean less so.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": ("{}",),
    "photo": ("a photo of a {}.",),
    "default": (
        "a photo of a {}.",
        "a close-up of a {}.",
        "a {} seen from some distance.",
        "a small, blurry picture of a {}.",
        "a drawing of a {}.",
        "an icon of a {}.",
        "a picture that shows a {}.",
    ),
}

# a template's article directly before the class
_ARTICLE = re.compile(r"\b([Aa])n? \{\}")
_HAS_ARTICLE = re.compile(r"(an?|the) ", re.IGNORECASE)
# Spelling and sound disagree: an hour, a unicorn. Beginnings of words.
_SILENT_H = ("hour", "honest", "honour", "honor", "heir")
_SOUNDS_LIKE_YOU = re.compile(r"(uni(?![dmn])|us[aeiu]|ut[ei]|ufo|uk|ur[aeiou]|eu|ewe|one\b|once\b|ouija)")


def clean_class_name(name: str) -> str:
    """A class name as words: "golden_retriever" and "polar-bear" are folder names, "T-shirt dress" is not."""
    text = name.replace("_", " ")
    if " " not in text.strip():
        text = text.replace("-", " ")
    return " ".join(text.split())


def fill(template: str, name: str) -> str:
    """`template` with `name` in place of {}, the article before it made to fit.

    Example:
        >>> fill("a photo of a {}.", "orange")
        'a photo of an orange.'
    """
    name = clean_class_name(name)

    def article(match: re.Match[str]) -> str:
        if _HAS_ARTICLE.match(name):
            return "{}"
        return match[1] + ("n {}" if _begins_with_vowel(name) else " {}")

    return _ARTICLE.sub(article, template).replace("{}", name)


def _begins_with_vowel(name: str) -> bool:
    word = name.lower()
    if word.startswith(_SILENT_H):
        return True
    return word[:1] in "aeiouàáâäåæèéêëìíîïòóôöøœùúûü" and not _SOUNDS_LIKE_YOU.match(word)


def check_templates(templates: str | Sequence[str] | None) -> tuple[str, ...]:
    """A set by its name in TEMPLATES, one template, several, or None for "default"; each has one {}."""
    if templates is None:
        return TEMPLATES["default"]
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        if "{}" not in templates:
            raise ClipkitError(
                f"no template set is called {templates!r}: use one of {', '.join(TEMPLATES)}, or a sentence "
                "with {} in the place of the class"
            )
        templates = (templates,)
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ClipkitError(
                f"the template {template!r} needs exactly one {{}} in the place of the class, as in "
                "'a photo of a {}.'"
            )
    if not len(templates):
        raise ClipkitError("templates is empty: pass at least one, such as 'a photo of a {}.'")
    return tuple(templates)


def check_class_names(class_names: Sequence[str]) -> list[str]:
    """The names as a list; ClipkitError if there are none, one is empty, or two are equal."""
    if isinstance(class_names, str):
        raise ClipkitError(f"class_names is the single text {class_names!r}: pass a list of names")
    names: dict[str, int] = {}
    for index, name in enumerate(class_names):
        if not isinstance(name, str) or not clean_class_name(name):
            raise ClipkitError(f"class_names[{index}] is {name!r}: each class needs a name")
        if name in names:
            raise ClipkitError(
                f"the class name {name!r} stands for classes {names[name]} and {index}: give each its own"
            )
        names[name] = index
    if not names:
        raise ClipkitError("class_names is empty: pass at least one class")
    return list(names)


def class_prompts(class_names: Sequence[str], templates: str | Sequence[str] | None = None) -> list[list[str]]:
    """The prompts of each class, one for each template."""
    chosen = check_templates(templates)
    return [[fill(template, name) for template in chosen] for name in check_class_names(class_names)]


def classifier_weights(
    encode_text: Callable[[list[str]], Any],
    class_names: Sequence[str],
    templates: str | Sequence[str] | None = None,
) -> np.ndarray:
    """A zero-shot classifier: one unit-norm vector a class, float32 (C, D).

    encode_text: takes a list of texts, returns their embeddings (n, D); they are normalised here.
    templates: a name in TEMPLATES, one template or several with {} in the place of the class.

    The vector of a class is the mean of its prompts' unit-norm embeddings, normalised again (Radford et al.
    2021, Learning Transferable Visual Models From Natural Language Supervision, section 3.1.4).

    Example:
        >>> weights = classifier_weights(model.encode_text, ["cat", "dog"], "photo")  # doctest: +SKIP
    """
    prompts = class_prompts(class_names, templates)
    per_class = len(prompts[0])
    step = max(1, 4096 // per_class)
    weights = []
    for start in range(0, len(prompts), step):
        texts = [text for of_class in prompts[start : start + step] for text in of_class]
        embeddings = as_numpy(encode_text(texts)).astype(np.float64)
        if embeddings.ndim != 2 or len(embeddings) != len(texts):
            raise ClipkitError(
                f"encode_text returned shape {embeddings.shape} for {len(texts)} texts: it must return one "
                "embedding a text"
            )
        unit = _normalised(embeddings, texts)
        mean = unit.reshape(-1, per_class, unit.shape[1]).mean(1)
        weights.append(_normalised(mean, list(class_names[start : start + step])))
    return np.concatenate(weights).astype(np.float32)


def _normalised(rows: np.ndarray, names: list[str]) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 1e-12)))
    if bad.size:
        raise ClipkitError(f"the embedding of {names[bad[0]]!r} has norm {norms[bad[0], 0]:.3g}: it has no direction")
    return rows / norms
