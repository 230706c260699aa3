"""The optimizers under test, one file each: a file here buys an optimizer the whole suite."""
