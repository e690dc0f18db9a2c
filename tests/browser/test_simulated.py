"""Jobs on slots that simulate."""

from console_pages import submit_images


def test_the_images_of_a_job_come_from_the_object_store(simulated, open_page, wait_until):
    page = open_page(simulated.url, key=simulated.key)
    job = submit_images(simulated.http, ["one disc"], lora="neon.safetensors")
    wait_until(lambda: simulated.http.get(f"/v1/requests/{job}").json()["status"] == "succeeded", what="the job's end")
    [image] = simulated.http.get(f"/v1/requests/{job}/result").json()["outputs"]["images"]

    size = page.evaluate(
        """async (url) => {
          const image = new Image();
          image.src = url;
          await image.decode();
          return [image.naturalWidth, image.naturalHeight];
        }""",
        image["url"],
    )

    assert size == [128, 96]
