"""A job's deadline over HTTP, with the API's own caretaker."""

import pytest


def post(api, **fields):
    body = {"model": "flux2", "loras": [], "prompts": [{"prompt": "a cat"}] * 2, **fields}
    return api.http.post("/v1/inference", json=body)


def test_images_that_nobody_starts_in_time_are_canceled_and_every_answer_says_why(api, wait_until):
    answer = post(api, deadline_s=0.01)
    assert answer.status_code == 202
    path = f"/v1/requests/{answer.json()['request_id']}"

    def ended():
        status = api.http.get(f"{path}/status").json()
        return status if status["finished_at"] else None

    status = wait_until(ended, what="the cancel of the images")

    assert (status["status"], status["cancel_requested"]) == ("canceled", False)
    assert status["created_at"] < status["deadline_at"] <= status["finished_at"]
    assert [item["error"]["code"] for item in status["items"]] == ["DEADLINE_EXCEEDED"] * 2
    assert status["error"] == status["items"][0]["error"]["message"]
    result = api.http.get(f"{path}/result").json()
    assert (result["status"], result["error"], result["outputs"]) == ("canceled", status["error"], None)
    assert [(error["index"], error["code"]) for error in result["errors"]] == [
        (0, "DEADLINE_EXCEEDED"),
        (1, "DEADLINE_EXCEEDED"),
    ]
    assert "flux2_items_deadline_exceeded_total 2.0" in api.http.get("/metrics").text.splitlines()


@pytest.mark.parametrize("deadline_s", [0, -1, 30 * 86_400 + 1, "soon"])
def test_a_deadline_that_cannot_be_is_refused(api, deadline_s):
    answer = post(api, deadline_s=deadline_s)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == "deadline_s"


def test_a_job_without_a_deadline_states_none(api):
    job = post(api).json()["request_id"]

    assert api.http.get(f"/v1/requests/{job}/status").json()["deadline_at"] is None
