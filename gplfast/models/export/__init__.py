"""ONNX graphs built straight from a checkpoint's weights; no torch, no tracing."""
