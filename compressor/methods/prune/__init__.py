"""Methods that remove channels, or weights: what they share, and in `papers/` one file each."""
