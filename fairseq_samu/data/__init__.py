"""Manifests, audio, sampling and the datasets made of them."""
