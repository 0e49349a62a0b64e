"""Knowledge distillation: the code that the methods share, and `papers/` with one file per method."""
