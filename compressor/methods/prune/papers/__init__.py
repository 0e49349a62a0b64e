"""One file per paper, named like its method. No paper imports another one."""
