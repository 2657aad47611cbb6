"""A discrete-event simulation of a run: the production `fold` and `decide` on a model of machines, gang and store."""
