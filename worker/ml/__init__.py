"""Tensors: photos in, compiled models out. Knows no Django and nothing of the server.

No module here imports TensorFlow, Keras or Core ML Tools until a function needs it, so importing
any of them costs next to nothing.
"""
