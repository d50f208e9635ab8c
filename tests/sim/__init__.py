"""A whole cluster in one process, in virtual time: one seed is one history, and replays exactly.

    python -m tests.sim --seed 7 --trace        one history, told
    python -m tests.sim --seeds 0-1999          many

What is real: the lockspace member and the cluster of the control process; volume, table, copy-outs, clusterized and
persistent stores of the worker. What is simulated, and under the contract tests of the real ones: etcd
(tests/support/fake_etcd.py) and the disks (disk.py over snapd/blockdev/memory.py). What is modelled: processes, the
channel between them, clocks, fencing, the operator, the clients.

    clock.py    CLOCK_BOOTTIME of one host: an offset and a rate of its own
    disk.py     the array: devices that judge what is written to them, one process's way to it
    worker.py   the I/O process          control.py  the control process          host.py  both, their life and death
    oracle.py   what is true: sectors as registers, snapshots as they were taken
    world.py    all of it together, fencing, power
    faults.py   what goes wrong, and its end
    play.py     one history: clients, operators, faults, then the healing and the last look
"""
