"""What happened to runs: events, the state that is folded from them, and their bills."""
