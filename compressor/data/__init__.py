"""Data sets: a spec such as `imagefolder:DIR` becomes batches of inputs and targets.

batches.py        what the other folders see: Data, Batches, Batch
specs.py          parse a spec, choose image size and normalisation: open_data
splits.py         the training, held-out (validation) and test splits
pixels.py         from bytes to the numbers that a network takes

Images of one shape, with class numbers or without targets:

folders.py        folders with one folder of image files per class, or image files alone
datasets.py       the data sets of scikit-learn and torchvision
images.py         read and resize single images; errors name the file
readers.py        read many images: kept in memory, or streamed by worker processes
framed.py         shuffled, augmented, normalised batches

Images with masks, or with other images:

layout.py         find files that belong together
segmentation.py   images with masks
samples.py        read single inputs with their targets
preparation.py    crop, flip, pad and normalise them
paired.py         shuffled, augmented, normalised batches

user_function.py  the user's own function, for either

Imports: nothing.
"""

from compressor.data.batches import IGNORED, Batch, Batches, Data, Kind, Split, check_classes, input_shape
from compressor.data.specs import open_data

__all__ = ["IGNORED", "Batch", "Batches", "Data", "Kind", "Split", "check_classes", "input_shape", "open_data"]
