"""Benchmarks of fastopt against torch.optim; `python -m benchmarks --help` lists them."""
