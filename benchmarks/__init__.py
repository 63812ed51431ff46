"""What the runtime costs, measured: throughput, peers, scaling, quality against speed."""
