"""Images for training and for measuring: a short spec such as `imagefolder:DIR` becomes batches of numbers.

specs.py          what a spec names, and at which size, mean and standard deviation it is used: open_data
folders.py        folders with one folder of image files a class
datasets.py       the sets that scikit-learn and torchvision read
user_function.py  the user's own function
splits.py         which images train, which choose, which measure
images.py         one image after another: read, give it the common shape, or say which file is broken
readers.py        many images at a time: kept in memory, or streamed by worker processes
batches.py        shuffled, augmented, normalised batches: Data

Imports: nothing.
"""

from compressor.data.batches import Batch, Batches, Data, check_classes
from compressor.data.specs import open_data

__all__ = ["Batch", "Batches", "Data", "check_classes", "open_data"]
