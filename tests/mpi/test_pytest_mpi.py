"""Tests may also be written for pytest-mpi, where one pytest runs on every rank:

    mpirun -n 2 python -m mpi4py -m pytest -p pytest_mpi --with-mpi -x tests/mpi/test_pytest_mpi.py

`-m mpi4py` ends all ranks when one fails, at the end of its session; `-x` makes that soon. Plain pytest leaves this file out;
test_harness.py runs it as above.
"""

from pathlib import Path

import pytest
from mpi4py import MPI


@pytest.mark.mpi(min_size=2)
def test_a_sum_over_ranks_arrives_on_every_rank():
    comm = MPI.COMM_WORLD
    assert comm.allreduce(comm.rank) == sum(range(comm.size))


@pytest.mark.mpi(min_size=2)
def test_a_message_goes_round_the_ring():
    comm = MPI.COMM_WORLD
    received = comm.sendrecv(comm.rank, dest=(comm.rank + 1) % comm.size, source=(comm.rank - 1) % comm.size)
    assert received == (comm.rank - 1) % comm.size


@pytest.mark.mpi
def test_mpi_tmp_path_is_one_folder_for_all_ranks(mpi_tmp_path):
    folders: list[Path] = MPI.COMM_WORLD.allgather(mpi_tmp_path)
    assert len(set(folders)) == 1
