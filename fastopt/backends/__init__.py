"""What updates tensors beside the compiled core: one package a backend, imported when needed."""
