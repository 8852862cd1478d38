"""The topology in DeepSpeed's words, so that it averages over dp ranks alone and counts split parameters in norms."""

import torch.distributed as dist

from collie.parallel._topology import Topology


class Grid:
    """What DeepSpeed calls an mpu."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._dp, self._tp = topology.group("dp"), topology.group("tp")

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._dp

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(self._dp)

    def get_data_parallel_world_size(self) -> int:
        return self._topology.dp_size

    def get_data_parallel_rank(self) -> int:
        return self._topology.dp_rank

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._tp

    def get_model_parallel_world_size(self) -> int:
        return self._topology.tp_size

    def get_model_parallel_rank(self) -> int:
        return self._topology.tp_rank

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        return self._tp

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._topology.tp_size

    def get_tensor_model_parallel_rank(self) -> int:
        return self._topology.tp_rank
