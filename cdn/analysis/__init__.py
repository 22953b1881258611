"""What a model has learned, measured: its Jacobian, and how it tells outliers."""
