"""Real engines on one machine: clusters and clouds of network namespaces, without a route out (README.md)."""
