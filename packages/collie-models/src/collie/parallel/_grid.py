"""The topology in DeepSpeed's words: it averages over dp ranks alone, and counts each parameter once in norms."""

import torch.distributed as dist

from collie.parallel._topology import Topology


class Grid:
    """What DeepSpeed calls an mpu.

    DeepSpeed sums norms over the model-parallel group. There a rank counts the parameters that are marked
    `tensor_model_parallel` (see `collie.parallel._tied.mark_counted`), and tensor-parallel rank 0 counts all that it
    has. So the place in the whole replica stands for both ranks: else each stage's rank 0 would count a tied copy.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._dp = topology.group("dp")
        self._model = topology.model_group or topology.group("tp")

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._dp

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(self._dp)

    def get_data_parallel_world_size(self) -> int:
        return self._topology.dp_size

    def get_data_parallel_rank(self) -> int:
        return self._topology.dp_rank

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._model

    def get_model_parallel_world_size(self) -> int:
        return self._topology.pp_size * self._topology.tp_size

    def get_model_parallel_rank(self) -> int:
        return self._topology.model_rank

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        return self._model

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._topology.pp_size * self._topology.tp_size

    def get_tensor_model_parallel_rank(self) -> int:
        return self._topology.model_rank
