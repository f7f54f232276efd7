"""Hosts that are killed, frozen and told to end while ten thousand requests are in flight.

Every request is answered once, and as the same prompt was when it was asked alone.
"""

import contextlib
import json
import re
import signal
import unittest

import crowd
from cluster_test import ClusterCase, metric, texts, wait_until
from server_process import Server

IN_FLIGHT = 10_000
CLIENTS = IN_FLIGHT + 500  # some are always between an answer and the next request
PROMPTS = 500
PROMPTS_OF_A_BATCH = 100
FEW_CLIENTS = 2000
LEAST_TOKENS = 10  # of a prompt with its labels
SMALL_QUEUE_TOKENS = 5000
LARGE_QUEUE_TOKENS = 1_000_000_000
OWN_RANK = "0"
COMPUTE = ["--dtype", "f32", "--threads", "1", "--max-batch-tokens", "1024"]
ROOM = ["--max-connections", str(CLIENTS + 100), "--max-backlog-seconds", "3600"]


def by_label(server, name, label):
    """A metric of a server, by the value of a label."""
    _, page = server.request("GET", "/metrics")
    pattern = re.compile(rf'^{name}\{{.*{label}="([^"]*)".*\}} (\S+)$')
    values = {}
    for match in filter(None, map(pattern.match, page.decode().splitlines())):
        values[match[1]] = values.get(match[1], 0) + float(match[2])
    return values


def works_at_others(founder):
    works = by_label(founder, "zeroprefill_router_outstanding_requests", "rank")
    return sum(count for rank, count in works.items() if rank != OWN_RANK)


def body_of(inputs):
    return json.dumps({"task": "topic", "input": inputs}).encode()


def ask_alone(server, prompts):
    """The data of each answer, asked one after the other with nobody else there."""
    data = []
    with contextlib.closing(server.connect()) as connection:
        for prompt in prompts:
            connection.request("POST", "/v1/classify", body_of([prompt]))
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise AssertionError(f"{answer.status}: {text}")
            data.extend(json.loads(text)["data"])
    return data


class LoadCase(ClusterCase):
    """Two hosts, the prompts, and their answers from a process that had nothing else to do."""

    dtype = "f32"
    most_words = 9

    @classmethod
    def setUpClass(cls):
        if not crowd.descriptors_are_enough_for(CLIENTS):
            raise unittest.SkipTest(f"{CLIENTS} clients need as many file descriptors (ulimit -Hn)")
        super().setUpClass()
        cls.prompts = texts(PROMPTS, seed=3, most_words=cls.most_words)
        cls.bodies = [body_of([prompt]) for prompt in cls.prompts]
        with Server(flags=COMPUTE) as alone:
            cls.data = ask_alone(alone, cls.prompts)

    def host(self, role, queue_tokens, flags):
        queue = ["--max-queue-tokens", str(queue_tokens)]
        return self.start(self.packed, role, [*flags, *COMPUTE, *ROOM, *queue])

    def found(self, *flags, queue_tokens=LARGE_QUEUE_TOKENS):
        place = ["--hosts", "2", "--cluster-port", str(self.port)]
        memory = ["--expert-memory", str(self.half)]
        return self.host("serve", queue_tokens, [*place, *memory, *flags])

    def join(self, founder):
        """A worker that has a seat; the founder brings it works from now on or soon."""
        worker = self.host("worker", LARGE_QUEUE_TOKENS, ["--join", f"127.0.0.1:{self.port}"])
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 2, "two hosts")
        return worker

    def crowd(self, founder, bodies=None, client_count=CLIENTS):
        clients = crowd.Crowd(founder.port, bodies or self.bodies, client_count)
        self.addCleanup(clients.finish)  # the servers are gone by then
        return clients

    def wait_for_load(self, founder, requests):
        """So many requests are open at the gateway, and the worker has a good part of the works."""

        def is_loaded():
            is_open = metric(founder, "zeroprefill_requests_open") > requests  # it is one itself
            return is_open and works_at_others(founder) >= requests / 10

        wait_until(is_loaded, f"{requests} requests in flight")

    def lose(self, host):
        host.process.kill()
        host.wait()

    def assert_each_is_answered_once(self, clients, exchanges):
        self.assertEqual(clients.refused_count, 0)
        self.assertEqual(clients.unasked_count, 0)
        for exchange in exchanges:
            self.assertEqual(exchange.answer_count, 1, exchange)

    def assert_each_is_right_once(self, clients, exchanges):
        self.assert_each_is_answered_once(clients, exchanges)
        for exchange in exchanges:
            self.assertEqual(exchange.status, 200, exchange)
            self.assert_right(exchange)

    def assert_right(self, exchange):
        self.assertEqual(json.loads(exchange.answer)["data"], [self.data[exchange.body]])

    def assert_nothing_is_out(self, server):
        """The ledger is exact: not nearly zero."""
        for name in ("router_outstanding_flops", "router_outstanding_requests", "outstanding_flops",
                     "queue_tokens", "queue_requests"):
            values = by_label(server, f"zeroprefill_{name}", "rank")
            self.assertTrue(values, name)
            self.assertEqual(set(values.values()), {0}, (name, values))


class LostWorkerTest(LoadCase):
    def test_ten_thousand_requests_outlive_a_worker_that_is_killed_twice(self):
        founder = self.found()
        worker = self.join(founder)
        clients = self.crowd(founder)
        self.wait_for_load(founder, IN_FLIGHT)
        self.lose(worker)
        worker = self.join(founder)
        self.wait_for_load(founder, IN_FLIGHT)
        self.lose(worker)
        self.assert_each_is_right_once(clients, clients.finish())
        self.assertGreater(metric(founder, "zeroprefill_router_resent_total"), IN_FLIGHT / 10)
        self.assert_nothing_is_out(founder)

    def test_thousands_of_prompts_in_few_requests_outlive_it_too(self):
        """A request of many prompts is one work: it goes to another rank whole."""
        starts = range(0, PROMPTS, PROMPTS_OF_A_BATCH)
        bodies = [body_of(self.prompts[start:][:PROMPTS_OF_A_BATCH]) for start in starts]
        founder = self.found()
        worker = self.join(founder)
        batches = IN_FLIGHT // PROMPTS_OF_A_BATCH
        clients = self.crowd(founder, bodies, batches + 10)
        self.wait_for_load(founder, batches)
        self.lose(worker)
        exchanges = clients.finish()
        self.assert_each_is_answered_once(clients, exchanges)
        for exchange in exchanges:
            self.assertEqual(exchange.status, 200, exchange)
            data = json.loads(exchange.answer)["data"]
            alone = self.data[starts[exchange.body] :][:PROMPTS_OF_A_BATCH]
            self.assertEqual([one["probs"] for one in data], [one["probs"] for one in alone])
        self.assert_nothing_is_out(founder)

    def test_a_queue_that_was_full_takes_what_a_lost_rank_had(self):
        """Who was let in is answered: it is not told afterwards that there is no room."""
        founder = self.found(queue_tokens=SMALL_QUEUE_TOKENS)
        worker = self.join(founder)
        clients = self.crowd(founder, client_count=FEW_CLIENTS)
        self.wait_for_load(founder, 0.9 * FEW_CLIENTS)
        clients.is_finishing = True

        def all_are_let_in():
            answered = by_label(founder, "zeroprefill_requests_total", "handler")
            waiting = metric(founder, "zeroprefill_router_outstanding_requests")  # asked for later
            return answered.get("/v1/classify", 0) + waiting >= len(clients.exchanges)

        wait_until(all_are_let_in, "every request is at a rank or answered")
        self.lose(worker)
        self.assert_each_is_right_once(clients, clients.finish())
        self.assertGreater(
            LEAST_TOKENS * metric(founder, "zeroprefill_router_resent_total"), SMALL_QUEUE_TOKENS
        )
        self.assert_nothing_is_out(founder)

    def test_what_a_frozen_worker_says_late_is_not_heard(self):
        founder = self.found()
        worker = self.join(founder)
        clients = self.crowd(founder, client_count=FEW_CLIENTS)
        self.wait_for_load(founder, 0.9 * FEW_CLIENTS)
        worker.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: works_at_others(founder) == 0, "its works are taken from it")
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 1, "it is missed")
        worker.process.send_signal(signal.SIGCONT)
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 2, "it is back")
        wait_until(lambda: works_at_others(founder) > 0, "it gets works again")
        self.assert_each_is_right_once(clients, clients.finish())
        self.assertGreater(by_label(worker, "zeroprefill_works_total", "outcome")["cancelled"], 0)
        self.assert_nothing_is_out(founder)
        self.assert_nothing_is_out(worker)

    def test_a_worker_that_is_told_to_end_leaves_no_request_behind(self):
        """Its works go to another rank, and it answers them as well: one of both counts."""
        founder = self.found()
        worker = self.join(founder)
        clients = self.crowd(founder, client_count=FEW_CLIENTS)
        self.wait_for_load(founder, 0.9 * FEW_CLIENTS)
        self.assertEqual(worker.stop(), 0)
        self.assert_each_is_right_once(clients, clients.finish())
        self.assertGreater(metric(founder, "zeroprefill_router_resent_total"), 0)
        self.assert_nothing_is_out(founder)


class LostAskerTest(LoadCase):
    """The gateway goes, or its clients do: nobody computes for those who do not wait any more."""

    most_words = 59  # so that a worker has enough to do until it misses its gateway

    def start_loaded(self, *flags):
        founder = self.found(*flags)
        worker = self.join(founder)
        clients = self.crowd(founder, client_count=FEW_CLIENTS)
        self.wait_for_load(founder, 0.9 * FEW_CLIENTS)
        return founder, worker, clients

    def assert_idle(self, worker):
        wait_until(lambda: metric(worker, "zeroprefill_outstanding_flops") == 0, "it drops them")
        self.assert_nothing_is_out(worker)

    def assert_dropped(self, worker, before):
        """Of what the gateway had brought, the worker computes no more than it was at."""
        self.assert_idle(worker)
        after = by_label(worker, "zeroprefill_works_total", "outcome")
        dropped = after["cancelled"] - before["cancelled"]
        answered = after["answered"] - before["answered"]
        self.assertGreater(dropped, answered, "most of them waited, and were computed all the same")

    def assert_serves_again(self, worker):
        founder = self.found()
        for host in (founder, worker):
            wait_until(lambda: metric(host, "zeroprefill_cluster_hosts") == 2, "both are back")
        clients = self.crowd(founder, client_count=FEW_CLIENTS // 4)
        self.wait_for_load(founder, 0.9 * FEW_CLIENTS // 4)
        self.assert_each_is_right_once(clients, clients.finish())
        self.assert_nothing_is_out(founder)
        self.assert_nothing_is_out(worker)

    def assert_refusal(self, exchange):
        self.assertEqual(exchange.status, 503, exchange)
        self.assertEqual(json.loads(exchange.answer)["error"]["code"], "unavailable", exchange)

    def test_clients_that_all_leave_at_once_take_their_works_with_them(self):
        founder, worker, clients = self.start_loaded()
        before = by_label(worker, "zeroprefill_works_total", "outcome")
        clients.leave()
        self.assert_dropped(worker, before)
        gauge = "zeroprefill_router_outstanding_requests"
        wait_until(lambda: metric(founder, gauge) == 0, "the gateway knows as well")
        self.assert_nothing_is_out(founder)
        again = self.crowd(founder, client_count=FEW_CLIENTS // 4)
        self.wait_for_load(founder, 0.9 * FEW_CLIENTS // 4)
        self.assert_each_is_right_once(again, again.finish())

    def test_a_gateway_that_is_killed_takes_its_works_with_it_and_comes_back(self):
        founder, worker, clients = self.start_loaded()
        before = by_label(worker, "zeroprefill_works_total", "outcome")
        self.lose(founder)
        self.assert_dropped(worker, before)
        lost = 0
        for exchange in clients.finish():
            self.assertFalse(exchange.is_torn, exchange)
            if exchange.status is None:
                lost += 1
            else:
                self.assertEqual(exchange.status, 200, exchange)
                self.assert_right(exchange)
        self.assertGreater(lost, FEW_CLIENTS / 2)
        self.assert_serves_again(worker)

    def test_a_gateway_that_freezes_answers_all_when_it_goes_on(self):
        """What the worker has dropped meanwhile is brought to a rank again."""
        founder, worker, clients = self.start_loaded()
        founder.process.send_signal(signal.SIGSTOP)
        self.assert_idle(worker)
        founder.process.send_signal(signal.SIGCONT)
        self.assert_each_is_right_once(clients, clients.finish())
        self.assert_nothing_is_out(founder)
        self.assert_nothing_is_out(worker)

    def test_a_gateway_that_is_told_to_end_answers_what_it_has(self):
        founder, worker, clients = self.start_loaded()
        clients.is_finishing = True
        self.assertEqual(founder.stop(), 0)
        self.assert_each_is_right_once(clients, clients.finish())
        self.assert_nothing_is_out(worker)
        self.assert_serves_again(worker)

    def test_a_gateway_that_has_no_time_to_end_says_so(self):
        founder, worker, clients = self.start_loaded("--drain-seconds", "0")
        clients.is_finishing = True
        self.assertEqual(founder.stop(), 0)
        exchanges = clients.finish()
        self.assert_each_is_answered_once(clients, exchanges)
        refusals = [exchange for exchange in exchanges if exchange.status != 200]
        for exchange in exchanges:
            if exchange.status == 200:
                self.assert_right(exchange)
            else:
                self.assert_refusal(exchange)
        self.assertGreater(len(refusals), 0)
        self.assert_idle(worker)
        self.assert_serves_again(worker)


if __name__ == "__main__":
    unittest.main()
