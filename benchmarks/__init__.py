"""Speed and accuracy figures that the documentation quotes; `python -m benchmarks` prints them all."""
