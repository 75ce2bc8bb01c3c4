"""Where the warning before a preemption comes from: one module per source, and the threads that listen."""
