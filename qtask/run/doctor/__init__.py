"""`qtask doctor` and `qtask health`: checks of an installation, each with advice if it fails.

The module `examination` lists all checks. A check is a function of `Config` or of `Examined` that returns findings.
"""
