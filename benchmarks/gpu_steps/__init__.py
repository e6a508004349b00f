"""The steps of benchmarks/gpu_evidence.py, a module each, and what they share.

A step is a generator of `Row`s: what the row is about, and the call that finds out the rest. It runs in a child process
(`child`) that the command (`children`) may have to kill, so each row is sent on as soon as it is there.
"""
