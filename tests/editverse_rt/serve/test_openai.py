"""OpenAI's own client, at a pinned version, against the server."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from live_server import LiveServer

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API")
FAST = {"schedule": "fast"}


@pytest.fixture
def api(server: LiveServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(api: Any) -> None:
    assert [model.id for model in api.models.list()] == ["nano"]


def test_a_video_is_created_polled_listed_downloaded_and_deleted(api: Any) -> None:
    video = api.videos.create_and_poll(
        prompt="A red circle", model="nano", seconds="1", size="64x64", extra_body={**FAST, "seed": 3}
    )
    assert (video.status, video.progress, video.size, video.model) == ("completed", 100, "64x64", "nano")
    assert video.completed_at is not None
    assert video.expires_at > video.completed_at
    assert api.videos.download_content(video.id).read()[4:8] == b"ftyp"
    assert api.videos.list(limit=1).data[0].id == video.id
    assert api.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        api.videos.retrieve(video.id)


def test_references_become_tags_by_their_content(api: Any, video: bytes, picture: bytes) -> None:
    made = api.videos.create(prompt="Make it night", input_reference=("x.bin", video), extra_body=FAST)
    assert made.prompt == "<video1> Make it night"
    made = api.videos.poll(made.id)
    assert made.status == "completed"
    body = {"prompt": "<video1> Make it look like <image1>", **FAST}
    files = [("image1", ("a", picture)), ("video1", ("b", video))]
    headers = {"Content-Type": "multipart/form-data"}
    two = api.post(
        "/videos", body=body, files=files, cast_to=type(made), options={"headers": headers}
    )  # fmt: skip
    assert api.videos.poll(two.id).status == "completed"


def test_a_video_is_edited_and_remixed(api: Any, video: bytes) -> None:
    edited = api.videos.edit(prompt="Make it night", video=("a.mp4", video), extra_body=FAST)
    assert api.videos.poll(edited.id).status == "completed"
    again = api.videos.remix(edited.id, prompt="Make it grayscale", extra_body=FAST)
    again = api.videos.poll(again.id)
    assert (again.status, again.remixed_from_video_id) == ("completed", edited.id)


def test_images_are_made_and_edited(api: Any) -> None:
    made = api.images.generate(prompt="A red circle", size="64x64", n=1, extra_body=FAST)
    data = base64.b64decode(made.data[0].b64_json)
    assert (made.size, data[:4]) == ("64x64", b"\x89PNG")
    edited = api.images.edit(
        image=[("a.png", data), ("b.png", data)], prompt="<image1> Make it like <image2>",
        output_format="jpeg", extra_body=FAST,
    )  # fmt: skip
    assert base64.b64decode(edited.data[0].b64_json)[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"quality": "low"}, "quality"), ({"n": 2}, "n"), ({"response_format": "url"}, "response_format"),
        ({"background": "opaque"}, "background"), ({"output_format": "gif"}, "output_format"),
        ({"extra_body": {"steps": 3}}, "steps"), ({"user": "ann"}, "user"), ({"stream": True}, "stream"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(api: Any, options: dict[str, Any], field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.images.generate(prompt="x", **options)
    assert caught.value.param == field
    assert caught.value.code == "serve.field"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"seconds": "4000"}, "request.too_large"), ({"seconds": "soon"}, "serve.field"),
        ({"size": "7x7"}, "request.size"), ({"model": "sora-2"}, "serve.model"),
        ({"extra_body": {"seed": "x"}}, "request.option"), ({"extra_body": {"nested": {"a": 1}}}, "serve.field"),
    ],
)  # fmt: skip
def test_a_wrong_video_is_refused(api: Any, options: dict[str, Any], code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.videos.create(prompt="x", **options)
    assert caught.value.code == code


def test_a_cancelled_video_has_failed_as_cancelled(api: Any, client: httpx.Client) -> None:
    video = api.videos.create(prompt="A red circle", extra_body={"num_inference_steps": 3000})
    client.post(f"/v1/jobs/{video.id}/cancel")
    video = api.videos.poll(video.id)
    assert (video.status, video.error.code) == ("failed", "cancelled")


def test_an_image_whose_client_leaves_is_cancelled(client: httpx.Client, server: LiveServer) -> None:
    body = {"prompt": "A red circle", "num_inference_steps": 3000}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/images/generations", json=body, timeout=1.0)
    server.wait_for("job_cancelled")
