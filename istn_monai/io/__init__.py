"""Files in, files out: images, landmarks, transforms, datalists.

Wall: io knows no pair, hence names no key of one; it imports geometry and itself alone.
"""
