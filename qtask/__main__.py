"""`python -m qtask` is the same as `qtask`."""

from qtask.cli import main

main()
