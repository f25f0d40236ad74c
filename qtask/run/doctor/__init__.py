"""`qtask doctor` and `qtask health`: checks of an installation, each with what to do when it fails.

The module `examination` lists all checks; one of them is a function of `Config` or of `Examined` that returns findings.
"""
