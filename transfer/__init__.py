"""Where a pre-trained backbone goes: its export, and PSENet, a detector that starts from it."""
