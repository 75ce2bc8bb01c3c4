"""What a run would have cost under other policies, or in other weather."""
