"""Methods that distil: what they share, and in `papers/` one file each."""
