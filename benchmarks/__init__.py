"""`python -m benchmarks`: what is claimed about speed, as ratios within one run."""
