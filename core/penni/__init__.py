"""PENNI: the kernels of a layer as combinations of a few kernels that the layer shares.

Li, Hanson, Li, Chen: PENNI, Pruned Kernel Sharing for Efficient CNN Inference (arXiv 2005.07133), with (input channel,
kernel) columns as the unit of pruning and closed-form refits between the steps.
"""
