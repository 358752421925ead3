"""Runs, benchmarks and studies. The only package that knows Hydra."""
