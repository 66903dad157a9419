"""Claims of the paper (arXiv 2506.14167) measured; `python -m benchmarks.claims` prints them."""
