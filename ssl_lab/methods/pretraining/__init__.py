"""Self-supervised pretraining: features without labels."""
