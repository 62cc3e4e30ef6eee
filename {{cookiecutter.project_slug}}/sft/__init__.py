"""The fine-tuning code of this project, one idea per file; train.py tells the story in order."""
