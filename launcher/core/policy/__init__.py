"""What a run does next, and the guards above it."""
