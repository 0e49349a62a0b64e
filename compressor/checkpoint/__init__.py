"""Checkpoints: read the common formats, find the code that builds the network, save and rebuild without pickle.

Imports: network, channels.
"""

from compressor.checkpoint.arch import accepts, build, parse_arch_args
from compressor.checkpoint.file_formats import kind_of
from compressor.checkpoint.load import Loaded, from_code, load, load_model
from compressor.checkpoint.read import Content, read
from compressor.checkpoint.recognise import Recognised, recognise

__all__ = [
    "Content",
    "Loaded",
    "Recognised",
    "accepts",
    "build",
    "from_code",
    "kind_of",
    "load",
    "load_model",
    "parse_arch_args",
    "read",
    "recognise",
]
