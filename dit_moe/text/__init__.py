"""Text from text by diffusion: an encoder and a decoder that read each other (DiffuSIA, 2023)."""
