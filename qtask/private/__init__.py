"""Everything that relies on private or undocumented parts of other packages, one module per package.

The packages used here are pinned to the minor version that was tested (requirements*.txt). After an upgrade,
tests/integration/test_private.py names each part that changed, and what relies on it. This room imports nothing of
QTask.
"""
