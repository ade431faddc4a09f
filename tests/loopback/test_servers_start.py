"""Sessions that begin before the servers that they need: they wait for them, up to a deadline that says for whom."""

from __future__ import annotations

import mpirt as tf
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.distributed.cluster import Cluster
from mpirt.distributed.control import Kind
from mpirt.distributed.control_pb2 import CreateSession
from mpirt.transport.loopback import LoopbackWorld


def test_a_session_that_is_opened_on_a_rank_still_starting_is_not_forgotten() -> None:
    transport = LoopbackWorld(1).transport(0)
    transport.send_control(0, CreateSession(request=1, session=1).SerializeToString(), Kind.CREATE_SESSION)
    cluster = Cluster(transport, ClusterSpec({"worker": 1}))  # its start reads that message among its own
    with tf.train.Server(cluster):
        assert cluster.service.worker.num_sessions == 1
