"""What the module ISTNRegistration is made of, besides its panel."""
