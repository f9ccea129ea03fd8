"""A Ray cluster on this machine: a head that runs no work and nodes of one core each, until its input ends.

python tests/cluster_of_nodes.py NODES        prints the address to connect to
"""

import sys

from ray.cluster_utils import Cluster


def main(nodes: int) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
