"""Checkpoints: what a training's state is (`snapshot`, `rng`), and how it is kept (`manifest`, `store`, `saver`)."""
