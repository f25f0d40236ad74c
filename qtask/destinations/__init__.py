"""One folder a destination; `docs/destinations.md` says how to add one.

The `__init__` of a folder describes the destination and is pure. The modules beside it deliver, and are imported when
the first task needs them. `registry` lists the destinations.
"""
