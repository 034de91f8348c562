"""What FastReID's evaluation has besides: the occluded and the free queries, each apart."""
