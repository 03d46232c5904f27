"""What a user calls once a model exists: ``load``, ``Aligner``, ``Classifier``, ``Index``."""

from clipkit.inference.aligner import Aligner, Match
from clipkit.inference.calibration import Calibration
from clipkit.inference.classifier import Classifier
from clipkit.inference.index import Hit, Index
from clipkit.inference.items import Item
from clipkit.inference.load import load

__all__ = ["Aligner", "Calibration", "Classifier", "Hit", "Index", "Item", "Match", "load"]
