"""What shows that the layers are right and how fast they are: the table of shapes, parity, timing, the self-check."""
