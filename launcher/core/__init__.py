"""Pure decisions: values in, values out. Nothing here reads a clock, a file or a socket.

Each part knows only those below it:

    replays      what a run would have cost under other policies, or in other weather
    estimates    what a run will cost, and how good such promises were
    policy       what a run does next
    runs         what happened to runs         doctor    what is missing before one can begin
    prices       what an hour costs where
    spec, gravity, hazards, gpus, offers       the words that all of them use
"""
