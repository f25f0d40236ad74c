"""Benchmarks of QTask and its peers; `README.md` beside this file says how to run and read them."""
