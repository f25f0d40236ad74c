"""A folder for each destination; `docs/destinations.md` says how to add one.

The `__init__` of a folder describes the destination and is pure. The other modules of the folder deliver, and are
imported for the first task. `registry` lists the destinations.
"""
