"""Filter pruning via geometric median (FPGM): redundant filters are pruned, whatever their norm.

He, Liu, Wang, Hu, Yang: "Filter Pruning via Geometric Median for Deep Neural Networks Acceleration", CVPR 2019,
arXiv 1811.00250, section 3.4.

    g_{l,j} = sum over j' of || W_{l,j} - W_{l,j'} ||_2        (the smallest: the filters nearest to the geometric median)

A filter near the geometric median of its layer can be represented by the remaining filters. All layers have the same pruning
rate; if the goal is a budget, it is the rate that meets the budget.

Interpretation: for coupled layers, the filters that produce the same channel are concatenated, so that || W_j - W_j' ||^2 is
the sum over the layers.
Unlike the paper: filters are pruned once, before training. The paper zeroes them after each epoch and keeps training them, as
in `sfp`.
"""

import numpy as np
import torch

from compressor.channels import Channels
from compressor.channels.groups import Group
from compressor.methods.prune.filters import OneShot
from compressor.methods.widths import Scores, uniform


class FPGM(OneShot):
    """Prunes the filters of every layer that are nearest to the geometric median of the layer, then fine-tunes."""

    paper = "He et al., CVPR 2019 (arXiv 1811.00250)"

    def scores(self, channels: Channels) -> Scores:
        return uniform(channels, np.concatenate([self.distances(group) for group in channels.groups]))

    def distances(self, group: Group) -> Scores:
        """g of each filter of a group [atoms]."""
        parameters = dict(self.model.named_parameters())
        squares = torch.zeros(group.size, group.size, dtype=torch.float64)  # squared pairwise distances
        for member in group.members:
            if member.role == "out" and parameters[member.tensor].dim() >= 2:
                weight = parameters[member.tensor].detach().cpu().double().movedim(member.dim, 0)
                filters = weight[torch.from_numpy(member.indices)].flatten(1)  # [atoms, weights]
                squares += torch.cdist(filters, filters).square()
        distances: Scores = squares.sqrt().sum(dim=1).numpy()
        return distances
