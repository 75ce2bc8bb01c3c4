"""What `launch doctor` asks of the outside, one module per system; `launcher.core.doctor` judges the answers."""
