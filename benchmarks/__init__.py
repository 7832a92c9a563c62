"""What is measured, beside rivals where there are any: `python -m benchmarks.NAME [--json FILE] [--quick]`."""
