"""All decompositions of a layer: the shared ones, and those of single papers."""

from compressor.methods.lowrank import decompositions
from compressor.methods.lowrank.papers import cp, tucker

SPLITS = {**decompositions.SPLITS, "tucker": tucker.IN_THREE, "cp": cp.IN_FOUR}
