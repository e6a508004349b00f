"""The loop: what a step does, in which order, at which rate. Knows no folder. Imports `data`, `models`, `options`."""
