"""All ways to split a layer: those that papers share, and the papers' own."""

from compressor.methods.lowrank import decompositions
from compressor.methods.lowrank.papers import cp, tucker

SPLITS = {**decompositions.SPLITS, "tucker": tucker.IN_THREE, "cp": cp.IN_FOUR}
