"""What exceptions say of memory and devices, told by name and text so that torch need not be loaded."""

OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory",
                 "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""How plain ``RuntimeError`` s of torch say that host or device memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is host or device memory running out."""
    return (isinstance(error, MemoryError) or any(c.__name__ == "OutOfMemoryError" for c in type(error).__mro__)
            or (isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)))


def is_device_lost(error: BaseException) -> bool:
    """Whether ``error`` leaves the process's GPU context unusable: whatever it tries there afterwards fails too."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return any(c.__name__ == "AcceleratorError" for c in type(error).__mro__) or "CUDA error: " in str(error)
