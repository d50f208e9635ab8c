"""``csnap doctor``: what a support engineer would ask for, looked at without changing anything.

Each subject is two modules: facts and the pure verdicts on them, and the edge that gathers the facts.

    finding.py                        a verdict: its level, what it is about, what to do
    devices.py      device_facts.py   origin and COW devices
    etcd.py         etcd_facts.py     each endpoint, the cluster, its clock; certificate.py: when TLS ends
    host.py         host_facts.py     clock, limits, watchdog, what must not lie on a csnap device
    unit.py         unit_facts.py     the systemd units
    daemon.py       daemon_facts.py   what the daemon and etcd say of members, snapshots, locks
    examine.py                        all of it for one volume; what cannot be looked at is said, with the reason
    bundle.py                         the results and what else support needs, without secrets
"""
