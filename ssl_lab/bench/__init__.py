"""Benchmarks: what a step, a net, a view and a query cost on this machine. Timings compare only within one run."""
