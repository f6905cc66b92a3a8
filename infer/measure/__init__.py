"""How fast candidates answer: timed in turns, with intervals, as records that can be compared."""
