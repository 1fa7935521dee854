"""Plain-Python models that the native code is compared with."""
