"""Methods that factor layers: what they share, and in `papers/` one file each."""
