"""Structured pruning: finds the coupled channels of a network, counts what any choice of them costs, and removes them.

Imports: network.
"""

from compressor.channels.groups import Channels, Frozen, Group, Heads, Mask, Residual, analyse
from compressor.channels.masks import mask
from compressor.channels.surgery import Cut, apply
from compressor.channels.verify import Verified, remove

__all__ = ["Channels", "Cut", "Frozen", "Group", "Heads", "Mask", "Residual", "Verified", "analyse", "apply", "mask", "remove"]
