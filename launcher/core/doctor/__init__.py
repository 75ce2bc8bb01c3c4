"""What is missing before a run can begin."""
