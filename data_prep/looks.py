"""What a picture looks like, in 200 bytes, and which pictures look alike.

A look is a perceptual hash (pHash: the signs of the low frequencies of a small grey copy, Zauner 2010) and a tiny
colour copy. Two pictures are near copies when their hashes differ in at most ``MAX_BITS`` of 64 bits *and* their tiny
copies by at most ``MAX_DIFFERENCE`` grey levels on average: the hash survives scaling and compression but knows neither
colour nor brightness, and the tiny copy settles what it confuses. A crop, a mirror image or an overlaid text is another
picture here; embeddings (``--dedup-model``) find those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.pairs.pillow import eight_bits

SIDE = 32  # of the grey copy
TINY = 8  # side of the colour copy
MAX_BITS = 6
MAX_DIFFERENCE = 8.0
_BANDS = MAX_BITS + 1  # of MAX_BITS different bits at least one of this many bands is free


@dataclass(frozen=True)
class Look:
    """Perceptual hash (64 bits) and tiny copy, uint8 (TINY * TINY * 3,)."""

    phash: int
    tiny: bytes


def _cosines() -> NDArray[np.float64]:
    """The first eight rows of the orthogonal DCT-II of ``SIDE`` points."""
    k, n = np.arange(8)[:, None], np.arange(SIDE)[None, :]
    return np.sqrt(2 / SIDE) * np.cos(np.pi * (2 * n + 1) * k / (2 * SIDE))


_COSINES = _cosines()
_N_BITS = np.array([i.bit_count() for i in range(1 << 16)], dtype=np.uint8)
_POWERS = np.uint64(1) << np.arange(64, dtype=np.uint64)


def look_of(image: Image.Image) -> Look:
    """The look of a loaded picture; transparency counts as white."""
    image = eight_bits(image)
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    if small.mode == "RGBA":
        white = Image.new("RGBA", small.size, "white")
        white.alpha_composite(small)
        small = white
    small = small.convert("RGB")
    grey = np.asarray(small.convert("L"), dtype=np.float64)
    low = (_COSINES @ grey @ _COSINES.T).ravel()
    bits = np.round(low, 6) > np.round(np.median(low), 6)  # rounded, so that a plain surface is the same everywhere
    tiny = np.asarray(small, dtype=np.uint16).reshape(TINY, SIDE // TINY, TINY, SIDE // TINY, 3).mean(axis=(1, 3))
    return Look(int(_POWERS[bits].sum(dtype=np.uint64)), tiny.round().astype(np.uint8).tobytes())


def near_copies(phash_N: NDArray[np.uint64], tiny_NP: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Pairs of places that are near copies; of a crowd that is equal in both, each is paired with the first.

    Args:
        phash_N: uint64 (N,) hashes.
        tiny_NP: uint8 (N, P) tiny copies.

    Cost: pictures are compared only with those that share a band of nine or ten bits of the hash, about N² / 150
    comparisons of one machine word: seconds for 100,000 pictures, some ten minutes for a million.
    """
    pairs: list[tuple[int, int]] = []
    looks = np.concatenate([phash_N.astype("<u8").view(np.uint8).reshape(-1, 8), tiny_NP], axis=1)
    packed = np.ascontiguousarray(looks).view([("look", f"V{looks.shape[1]}")])["look"].ravel()
    _, first_N, inverse_N = np.unique(packed, return_index=True, return_inverse=True)
    firsts = np.sort(first_N)
    same = first_N[inverse_N.ravel()]
    pairs += [(int(a), int(b)) for a, b in zip(same, range(len(same)), strict=True) if a != b]
    hashes, tiny = phash_N[firsts], tiny_NP[firsts].astype(np.int16)
    seen: set[tuple[int, int]] = set()
    for a_P, b_P in _candidates(hashes):
        close = np.abs(tiny[a_P] - tiny[b_P]).mean(axis=1) <= MAX_DIFFERENCE
        seen.update(zip(firsts[a_P[close]].tolist(), firsts[b_P[close]].tolist(), strict=True))
    return pairs + sorted(seen)


def _candidates(hash_N: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs (a < b) whose hashes differ in at most ``MAX_BITS`` bits."""
    edges = np.linspace(0, 64, _BANDS + 1).astype(int)
    for low, high in pairwise(edges):
        band = (hash_N >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        ordered = band[order]
        at = np.arange(len(order))
        for step in range(1, len(order)):
            at = at[at + step < len(order)]
            at = at[ordered[at] == ordered[at + step]]
            if not len(at):
                break
            a, b = order[at], order[at + step]
            close = _n_bits(hash_N[a] ^ hash_N[b]) <= MAX_BITS
            if close.any():
                yield np.minimum(a[close], b[close]), np.maximum(a[close], b[close])


def _n_bits(value_N: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Set bits of each value; numpy has its own, faster function for this since 2.0."""
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(value_N))
    return _N_BITS[value_N.view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint8)
