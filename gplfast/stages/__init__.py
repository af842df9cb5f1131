"""The steps of the pipeline, one file each: artifact in, artifact out. No stage imports another."""
