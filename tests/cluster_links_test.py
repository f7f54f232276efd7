"""A link between two hosts is cut for a while and mended: both go on, and find each other again.

Each host is a network namespace with two interfaces: one to the other host, which is cut, and one
to this test, which is not. Needs root and iproute2; skips, and says so, where it may not.
"""

import os
import shutil
import subprocess
import time
import unittest

import cluster_test
from cluster_test import metric, wait_until

NAME = f"zp{os.getpid() % 100000}"
CUT_SECONDS = 12  # longer than the time-outs of reads, seats and pings


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


def missing():
    """Why the test cannot run here, or None."""
    if shutil.which("ip") is None:
        return "there is no `ip`"
    probe = subprocess.run(["ip", "netns", "add", f"{NAME}p"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return f"network namespaces cannot be made here: {probe.stderr.strip()}"
    run("ip", "netns", "delete", f"{NAME}p")
    return None


class Hosts:
    """Two namespaces; host i has 10.213.0.i for the other host and 10.213.i.2 for clients."""

    def __init__(self):
        for host in (1, 2):
            run("ip", "netns", "add", self.namespace(host))
            run("ip", "-n", self.namespace(host), "link", "set", "lo", "up")
            self.add_interface(host, "clients", f"10.213.{host}.2/24")
            run("ip", "address", "add", f"10.213.{host}.1/24", "dev", f"{NAME}c{host}")
        run("ip", "link", "add", "hosts", "netns", self.namespace(1), "type", "veth",
            "peer", "name", "hosts", "netns", self.namespace(2))
        for host in (1, 2):
            self.ip(host, "address", "add", f"10.213.0.{host}/24", "dev", "hosts")
            self.ip(host, "link", "set", "hosts", "up")

    @staticmethod
    def namespace(host):
        return f"{NAME}h{host}"

    def ip(self, host, *command):
        run("ip", "-n", self.namespace(host), *command)

    def add_interface(self, host, name, address):
        outside = f"{NAME}c{host}"
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", name, "netns", self.namespace(host))
        run("ip", "link", "set", outside, "up")
        self.ip(host, "address", "add", address, "dev", name)
        self.ip(host, "link", "set", name, "up")

    def set_cable(self, state):
        """`down` at one end is a cut for both: the other sees no carrier, nobody an error."""
        self.ip(2, "link", "set", "hosts", state)

    def close(self):
        for host in (1, 2):
            subprocess.run(["ip", "netns", "delete", self.namespace(host)], check=False, capture_output=True)


class ClusterLinksTest(cluster_test.ClusterCase):
    @classmethod
    def setUpClass(cls):
        reason = missing()
        if reason:
            raise unittest.SkipTest(reason)
        super().setUpClass()

    def start_on(self, host, packed, role, flags):
        return self.start(
            packed,
            role,
            flags,
            prefix=["ip", "netns", "exec", Hosts.namespace(host)],
            host=f"10.213.{host}.2",
        )

    def test_a_cut_link_holds_nobody_up_and_heals(self):
        hosts = Hosts()
        self.addCleanup(hosts.close)
        copies = (self.copy_of_packed("first"), self.copy_of_packed("second"))
        founder = self.start_on(1, copies[0], "serve", [
            "--hosts", "2", "--expert-memory", str(self.half),
            "--cluster-address", "10.213.0.1", "--cluster-port", str(self.port),
        ])
        worker = self.start_on(2, copies[1], "worker", ["--join", f"10.213.0.1:{self.port}"])
        both = (founder, worker)
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 2, "two hosts")
        wait_until(lambda: metric(worker, "zeroprefill_cluster_hosts") == 2, "two hosts")
        others = {"host 1": founder, "host 0": worker}
        for server in both:
            self.assert_answers(server)

        hosts.set_cable("down")
        cut = time.monotonic()
        while time.monotonic() < cut + CUT_SECONDS:
            for server in both:
                self.assert_answers_soon(server)
        self.assertEqual(metric(founder, "zeroprefill_cluster_hosts"), 1)

        hosts.set_cable("up")
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 2, "the worker is back")
        healed = time.monotonic()
        while time.monotonic() < healed + CUT_SECONDS:
            for server in both:
                self.assert_answers_soon(server)
        # As long as its file is whole and faster a host may leave the other's memory alone.
        gathered = {other: cluster_test.gathered_from(server, other) for other, server in others.items()}
        for packed in copies:
            self.corrupt(packed)
        for other, server in others.items():
            self.assert_each_answers(server)
            self.assertGreater(cluster_test.gathered_from(server, other), gathered[other], other)


if __name__ == "__main__":
    unittest.main()
