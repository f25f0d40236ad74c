"""Deliveries, one module a kind of address."""
