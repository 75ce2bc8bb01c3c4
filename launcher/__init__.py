"""spotlaunch: places a training run on the cheapest capacity that meets its deadline, and accounts for it."""

__version__ = "0.1.0"
