"""The joint embedding: image and text towers and the pooling on both."""
