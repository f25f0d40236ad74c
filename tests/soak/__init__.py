"""The soak: all of QTask at a steady load for minutes, while its memory is watched. `make soak`."""
