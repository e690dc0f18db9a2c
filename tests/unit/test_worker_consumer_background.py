"""Background threads do one piece of work at a time, and log what fails in them."""

import logging
import threading

from worker.consumer.background import BackgroundUploader, Prefetcher


def test_an_uploader_starts_the_next_work_only_when_the_one_before_has_ended():
    uploader = BackgroundUploader()
    go, order = threading.Event(), []

    uploader.submit(lambda: (go.wait(10), order.append("first")))
    second = threading.Thread(target=uploader.submit, args=[lambda: order.append("second")])
    second.start()
    second.join(0.2)
    assert second.is_alive()

    go.set()
    second.join(10)
    uploader.wait()
    assert order == ["first", "second"]


def test_work_from_many_threads_never_overlaps_in_an_uploader():
    uploader = BackgroundUploader()
    running, most, count = [], [], []

    def work():
        running.append(1)
        most.append(len(running))
        threading.Event().wait(0.001)
        running.pop()
        count.append(1)

    threads = [threading.Thread(target=uploader.submit, args=[work]) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    uploader.wait()

    assert (max(most), len(count)) == (1, 20)


def test_a_busy_prefetcher_drops_work():
    prefetcher = Prefetcher()
    go, done = threading.Event(), []

    prefetcher.submit(lambda: (go.wait(10), done.append("first")))
    prefetcher.submit(lambda: done.append("second"))
    go.set()
    prefetcher.wait()
    prefetcher.submit(lambda: done.append("third"))
    prefetcher.wait()

    assert done == ["first", "third"]


def test_an_exception_in_the_background_is_logged(caplog):
    uploader, prefetcher = BackgroundUploader(), Prefetcher()

    def stumble():
        raise ZeroDivisionError("a bug")

    with caplog.at_level(logging.INFO, logger="flux2.worker.consumer"):
        for runner in (uploader, prefetcher):
            runner.submit(stumble)
            runner.wait()

    assert [record.getMessage() for record in caplog.records] == [
        "unexpected error while storing",
        "next item not prepared",
    ]
