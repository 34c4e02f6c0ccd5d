"""Where a pre-trained backbone goes: its export, two detectors that start from it, their scores."""
