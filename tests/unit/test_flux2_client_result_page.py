"""The page of the demonstration's results."""

import base64
from types import SimpleNamespace

from flux2_client.result_page import ResultFile, ResultGroup, write_result_page


def test_a_page_of_results_holds_the_images_and_escapes_what_they_say(tmp_path):
    file = tmp_path / "batch-0.png"
    file.write_bytes(b"pixels")
    image = SimpleNamespace(
        format="png", width=128, height=96, seed=7, prompt='a <b> & "c"', adapters=[], timings={"denoise": 1.234}
    )

    write_result_page(tmp_path / "index.html", [ResultGroup("batch", [ResultFile(image, file)])], title="a > b")

    text = (tmp_path / "index.html").read_text()
    assert f'<a href="batch-0.png"><img src="data:image/png;base64,{base64.b64encode(b"pixels").decode()}"' in text
    assert 'width="128" height="96" alt="a &lt;b&gt; &amp; &quot;c&quot;"' in text
    assert "<small>seed 7, 128x96</small><small>denoise 1.23 s</small>" in text
    assert "<title>a &gt; b</title>" in text
    assert "<b>" not in text
    # It needs no other file.
    assert "http" not in text
