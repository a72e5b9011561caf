"""Plain PyTorch modules that take numbers and tensors, never options."""
