"""Files in and files out: images, landmarks, transforms, datalists. Knows geometry, and no pair."""
