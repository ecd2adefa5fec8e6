"""The embedded default: clips, captions and a small pretrained backbone."""
