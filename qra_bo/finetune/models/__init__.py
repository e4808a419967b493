"""Base models: downloaded, loaded without pickles, with a fast attention kernel, on the device or in host memory."""
