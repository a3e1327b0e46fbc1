"""The network, how it is applied, the model folder, ONNX, and scores from a confusion matrix."""
