"""The Stable Diffusion autoencoder (KL-f8): images to latents and back."""
