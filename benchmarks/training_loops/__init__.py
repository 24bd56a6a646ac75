"""Programs that train the same model on the same data: ours, a bare loop, and timm's parts."""
