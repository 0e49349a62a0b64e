"""Which channels of a network live and die together, what any choice of them costs, and the surgery that takes them out.

Imports: network.
"""

from compressor.channels.groups import Channels, Frozen, Group, Heads, Mask, Residual, analyse
from compressor.channels.masks import mask
from compressor.channels.surgery import Cut, apply
from compressor.channels.verify import Verified, remove

__all__ = ["Channels", "Cut", "Frozen", "Group", "Heads", "Mask", "Residual", "Verified", "analyse", "apply", "mask", "remove"]
