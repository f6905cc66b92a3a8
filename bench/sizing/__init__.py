"""How many cores, workers and nodes a load needs: service times that were measured, and a simulation.

simulation.py    requests, queues and batches as discrete events
arrivals.py      when requests come: Poisson, and in bursts
service.py       how long a batch takes: a table that was measured, and how to measure one
page.py          the page `bench/results/sizing.md`
"""
