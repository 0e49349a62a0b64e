"""Units that people write behind numbers, in capitals. A megabyte is 10^6 bytes, here and in every report."""

COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
BYTES = {**COUNTS, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9}
MILLISECONDS = {"US": 1e-3, "MS": 1.0, "S": 1e3}
POINTS = {"%": 0.01}  # of an accuracy
