"""What the bundle's configs call, and nothing else."""
