"""What can be wrong with weights."""


class WeightsError(ValueError):
    """Weights that can't be used, with the file, what is wrong, and what to do."""


class UnsafeFileError(WeightsError):
    """A file that holds more than tensors, and would have to run code to be read."""
