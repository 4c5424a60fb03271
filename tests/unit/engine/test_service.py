"""The loop that answers requests as they come, on an engine with a model of a few lines."""

import queue
import threading

import pytest

from corebound.engine.engine import Engine
from corebound.engine.inbox import Inbox, State, Ticket, UnavailableError
from corebound.engine.request import Request, RequestOutput, SamplingParams
from corebound.engine.service import Service
from corebound.errors import CommError, CoreboundError
from unit.engine.engine_fakes import FakeRunner, LetterTokenizer, continuation, make_scheduler


def request_of(number, ticket):
    return Request(id=number, prompt="", prompt_token_ids=tuple(ticket.prompt), params=ticket.params)


class Running:
    """A service in a thread, and what its requests hear."""

    def __init__(self, check=lambda: None, heartbeat_s=0.01, runner=None, make_request=request_of, **options):
        self.inbox = Inbox(**options)
        engine = Engine(runner or FakeRunner(4), make_scheduler(), LetterTokenizer())
        service = Service(engine, make_request, self.inbox, check, heartbeat_s=heartbeat_s, max_running=4)
        self.error = None
        self.thread = threading.Thread(target=self._run, args=(service,))
        self.inbox.open()

    def _run(self, service):
        try:
            service.run()
        except Exception as error:
            self.error = error

    def ask(self, prompt, count=4):
        return self.ask_for_a_while(prompt, count)[0]

    def ask_for_a_while(self, prompt, count=4):
        """Returns also the ticket, with which the request can be cancelled."""
        news = queue.SimpleQueue()
        ticket = Ticket(prompt=tuple(prompt), params=SamplingParams(max_new_tokens=count), tell=news.put)
        self.inbox.submit([ticket])
        return news, ticket


def last(news):
    """Return the last word of a request."""
    while isinstance(said := news.get(timeout=20), str):
        pass
    return said


def test_requests_that_come_at_any_time_get_their_own_answers():
    running = Running()
    running.thread.start()
    asked = {}
    for number in range(1, 9):
        asked[number] = running.ask([number, 2 * number], count=number)
    for number, news in asked.items():
        output = last(news)
        assert isinstance(output, RequestOutput)
        assert list(output.token_ids) == continuation([number, 2 * number], number)
    running.inbox.drain()
    running.thread.join(20)
    assert running.error is None


def test_a_drain_answers_what_is_here_and_refuses_what_comes():
    running = Running()
    asked = [running.ask([number]) for number in (1, 2, 3)]
    running.inbox.drain()
    with pytest.raises(UnavailableError, match="draining"):
        running.ask([4])
    running.thread.start()
    running.thread.join(20)
    assert not running.thread.is_alive()
    assert all(isinstance(last(news), RequestOutput) for news in asked)


def test_nothing_is_taken_before_it_is_open_or_when_too_many_wait():
    with pytest.raises(UnavailableError, match="loading"):
        Inbox().submit([Ticket(prompt=(1,), params=SamplingParams(), tell=print)])
    running = Running(max_waiting=2)
    running.ask([1])
    running.ask([2])
    with pytest.raises(UnavailableError, match="2 requests wait already"):
        running.ask([3])


def test_cancelled_requests_are_ended_whether_they_wait_or_run_and_nobody_hears_of_it():
    class Gated(FakeRunner):
        gate = threading.Semaphore(0)

        def run(self, inputs, copies):
            assert self.gate.acquire(timeout=20)
            return super().run(inputs, copies)

    running = Running(runner=Gated(4))
    asked = [running.ask_for_a_while([number], count=8) for number in range(1, 7)]
    running.thread.start()
    Gated.gate.release(2)
    assert isinstance(asked[0][0].get(timeout=20), str)
    assert running.inbox.num_running == 4
    running.inbox.cancel([ticket for _, ticket in (asked[0], asked[2], asked[5])])
    Gated.gate.release(100)
    for number in (2, 4, 5):
        assert list(last(asked[number - 1][0]).token_ids) == continuation([number], 8)
    running.inbox.drain()
    running.thread.join(20)
    assert running.error is None
    assert (running.inbox.num_waiting, running.inbox.num_running) == (0, 0)
    assert asked[5][0].empty()
    for news, _ in (asked[0], asked[2]):
        while not news.empty():
            assert isinstance(news.get(), str)


def test_logits_that_are_not_numbers_end_one_request_and_the_service_goes_on():
    running = Running(runner=FakeRunner(4, broken=lambda seen: seen == [2, 13]))
    running.thread.start()
    good, bad = running.ask([1], count=8), running.ask([2, 13])
    assert "the model's logits at position 1 are not numbers" in last(bad).message
    assert isinstance(last(good), RequestOutput)
    assert isinstance(last(running.ask([3])), RequestOutput)
    running.inbox.drain()
    running.thread.join(20)
    assert running.error is None


def test_a_request_that_cannot_run_hears_why_and_the_others_go_on():
    running = Running()
    running.thread.start()
    bad, good = running.ask([1000]), running.ask([1])
    assert "token id 1000" in last(bad).message
    assert isinstance(last(good), RequestOutput)
    running.inbox.drain()
    running.thread.join(20)
    assert running.error is None


def test_a_request_that_cannot_even_be_read_ends_alone():
    def clumsy(number, ticket):
        if ticket.prompt == (13,):
            raise IndexError("piece id is out of range")
        return request_of(number, ticket)

    running = Running(make_request=clumsy)
    running.thread.start()
    bad, good = running.ask([13]), running.ask([1])
    assert "IndexError: piece id is out of range" in last(bad).message
    assert isinstance(last(good), RequestOutput)
    running.inbox.drain()
    running.thread.join(20)
    assert running.error is None


def test_what_the_engine_has_no_room_for_waits_where_it_is_counted():
    running = Running(max_waiting=6)
    asked = [running.ask([number], count=8) for number in range(1, 7)]
    running.thread.start()
    assert isinstance(last(asked[0]), RequestOutput)
    assert all(isinstance(last(news), RequestOutput) for news in asked[1:])
    running.inbox.drain()
    running.thread.join(20)


def test_ranks_are_asked_though_refused_requests_keep_coming():
    checks = queue.SimpleQueue()

    def check():
        checks.put(1)

    running = Running(check, heartbeat_s=0.05)
    running.thread.start()
    for _ in range(40):
        last(running.ask([1000]))
    checks.get(timeout=20)
    running.inbox.drain()
    running.thread.join(20)


def test_a_rank_that_is_gone_is_found_though_nobody_asks_and_ends_the_service():
    beats = iter(range(3))

    def check():
        if next(beats, None) is None:
            raise CommError("rank 1 on node2 is gone")

    running = Running(check)
    running.thread.start()
    running.thread.join(20)
    assert isinstance(running.error, CommError)
    assert running.inbox.state is State.FAILED
    with pytest.raises(UnavailableError, match="failed"):
        running.ask([1])


def test_after_an_error_every_request_hears_of_it():
    class Broken(FakeRunner):
        def run(self, inputs, copies):
            raise CommError("rank 1 on node2 is gone")

    running = Running(runner=Broken(4))
    asked = [running.ask([number]) for number in (1, 2)]
    running.thread.start()
    for news in asked:
        said = last(news)
        assert isinstance(said, CoreboundError)
        assert "rank 1 on node2 is gone" in said.message
    running.thread.join(20)


def test_silence_is_counted_from_the_last_beat():
    inbox = Inbox()
    first = inbox.silent_s
    inbox.beat()
    assert inbox.silent_s <= first + 1
    assert 0 <= inbox.silent_s < 10
