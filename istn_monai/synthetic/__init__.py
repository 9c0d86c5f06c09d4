"""The paper's toy: pairs of vessel trees in a misleading box, with known transformations."""
