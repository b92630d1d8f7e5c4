"""Imago trains GANs for high-resolution pictures. The four packages in this folder are links to those at the repository's top."""
