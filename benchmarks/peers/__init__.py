"""The peers: one file each that runs in the environment of its own, and the catalogue that starts them."""
