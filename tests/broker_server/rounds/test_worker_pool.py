import os

import pytest

from broker_server.rounds.worker_pool import WorkerLost, local_workers


def test_local_hosts_work_in_processes_of_their_own_and_say_what_the_work_raises():
    with local_workers(1) as hosts:
        assert hosts.processors == 1
        assert hosts.executor.submit(os.getpid).result() != os.getpid()
        with pytest.raises(ValueError, match="invalid literal"):
            hosts.executor.submit(int, "seven").result()


def test_local_hosts_of_which_one_is_ended_from_outside_are_lost():
    with pytest.raises(WorkerLost, match="a worker process was ended from outside"), local_workers(1) as hosts:
        hosts.executor.submit(os._exit, 1).result()


def test_local_hosts_are_left_at_once_when_something_else_goes_wrong():
    def interrupted():
        with local_workers(1) as hosts:
            hosts.executor.submit(os.getpid).result()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
