"""Linear models on a device, with numpy alone: features are a matrix, and a device's model is one vector."""
