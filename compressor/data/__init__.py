"""Data sets of labelled images: a spec such as `imagefolder:DIR` becomes batches of tensors.

specs.py          parse a spec, choose image size and normalisation: open_data
folders.py        folders with one folder of image files per class
datasets.py       the data sets of scikit-learn and torchvision
user_function.py  the user's own function
splits.py         the training, held-out (validation) and test splits
images.py         read and resize single images; errors name the file
readers.py        read many images: kept in memory, or streamed by worker processes
batches.py        shuffled, augmented, normalised batches: Data

Imports: nothing.
"""

from compressor.data.batches import Batch, Batches, Data, check_classes
from compressor.data.specs import open_data

__all__ = ["Batch", "Batches", "Data", "check_classes", "open_data"]
