"""What all destinations share: the event loop, look-ups of names, connecting, and how a delivery ends."""
