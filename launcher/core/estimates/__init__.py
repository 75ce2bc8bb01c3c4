"""What a run will cost and how long it takes: its pace, futures and plan, and how good estimates were."""
