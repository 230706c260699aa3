"""What updates tensors: a module or package a backend; what is heavy is imported when needed."""
