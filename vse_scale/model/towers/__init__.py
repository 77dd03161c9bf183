"""The towers: image and text encoders of the joint embedding."""
