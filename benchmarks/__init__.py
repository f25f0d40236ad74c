"""Benchmarks of QTask and its peers; `README.md` in this folder says how to run and read them."""
