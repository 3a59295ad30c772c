"""What the losses of kernels/ cost and how exact they are, beside dense torch and libraries that do the same."""
