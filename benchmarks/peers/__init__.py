"""The peers: one file each, which runs in the environment of that peer, and the catalogue that starts them."""
