"""What an operator asks of the cluster: take, drop, list; join and leave."""
