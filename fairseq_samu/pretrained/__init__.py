"""Reads pretrained checkpoints, maps their names and checks their shapes."""
