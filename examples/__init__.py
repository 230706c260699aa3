"""Examples that show fastopt at work; start with ``python -m examples.demo --help``."""
