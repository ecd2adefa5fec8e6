"""The description of the API in OpenAPI 3.1, at ``/openapi.json``; a test holds it and the routes to each other."""

from __future__ import annotations

from typing import Any

from xmafast import __version__
from xmafast.serve.limits import Limits

STRING: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "number"}
WHOLE: dict[str, Any] = {"type": "integer"}
TRUTH: dict[str, Any] = {"type": "boolean"}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_CLIP: dict[str, dict[str, Any]] = {
    "id": {**STRING, "description": "Path below the library's folder; of a cache SPLIT/ID."},
    "token": {**STRING, "pattern": "^[0-9a-f]{20}$", "description": "What addresses call it."},
    "kind": {"enum": ["video", "image"]},
    "split": STRING,
    "captions": _list(STRING),
    "modified": {**NUMBER, "description": "Its file's time, in seconds since 1970; 0 where a cache's video is gone."},
    "times": {**_list(NUMBER), "description": "Seconds of the frames that were indexed."},
    "thumbnail": {**STRING, "description": "Address of a small JPEG: of the frame that counts most, or of the first."},
    "file": {**STRING, "description": "Address of the video or image itself."},
}
_HIT = {
    "rank": WHOLE,
    "score": {**NUMBER, "description": "Cosine."},
    "best_time": {**NUMBER, "description": "The second of the frame that counts most."},
    "frame": {**WHOLE, "description": "That frame's number."},
    **_CLIP,
    "weights": {**_list(NUMBER), "description": "How much each frame counts; they add up to 1."},
}
SCHEMAS = {
    "Error": _object(error={**STRING, "description": "One sentence for people."}),
    "Library": _object(
        name=STRING, clips=WHOLE, failures={**WHOLE, "description": "Files that could not be indexed."}, revision=WHOLE,
        adapter={**STRING, "description": "The one that is searched where none is named."}, adapters=_list(STRING), upload_bytes=WHOLE,
        version=STRING, trouble={**TRUTH, "description": "The library cannot be read again; what was read before is served."},
    ),
    "Adapter": _object(
        name=STRING, backbone=STRING, pretrained=STRING, method={"type": ["string", "null"]}, header=STRING, dim=WHOLE, words=WHOLE
    ),
    "Clip": _object(**_CLIP),
    "Clips": _object(clips=WHOLE, items=_list(_ref("Clip"))),
    "Hit": _object(**_HIT),
    "Found": _object(
        by={"enum": ["text", "image", "clip"]}, adapter=STRING, clips={**WHOLE, "description": "How many were searched."}, seconds=NUMBER,
        hits=_list(_ref("Hit")),
    ),
}  # fmt: skip


def _parameter(name: str, schema: dict[str, Any], about: str, *, place: str = "query") -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": about}


def _operation(about: str, schema: Any, parameters: list[dict[str, Any]], errors: dict[int, str], **more: Any) -> dict[str, Any]:
    content = schema if "content" in schema else {"content": {"application/json": {"schema": schema}}}
    responses: dict[str, Any] = {"200": {"description": "Done.", **content}}
    for status, meaning in {421: "A Host header that is not this server's.", **errors}.items():
        responses[str(status)] = {"description": meaning, "content": {"application/json": {"schema": _ref("Error")}}}
    return {"summary": about, "parameters": parameters, "responses": responses, **more}


def document(limits: Limits) -> dict[str, Any]:
    """The whole of it, with a server's own limits."""
    token = _parameter("token", _CLIP["token"], "Which clip.", place="path")
    version = _parameter("v", STRING, "The content that an address stands for; it may then be kept.")
    chosen = [
        _parameter("adapter", STRING, "Which adapter's embeddings; the server's default where there is none."),
        _parameter("topk", {**WHOLE, "minimum": 1, "maximum": limits.topk, "default": min(24, limits.topk)}, "How many clips."),
        _parameter("path", STRING, "A glob over ids, as holiday/*.mp4; * also stands for slashes."),
        _parameter("since", NUMBER, "Files changed since, in seconds since 1970."),
        _parameter("until", NUMBER, "Files changed until then."),
        _parameter("start", NUMBER, "Moments from this second of a video on."),
        _parameter("end", NUMBER, "Moments before this second."),
    ]
    wrong, gone, busy = (
        {400: "A parameter that is wrong."},
        {404: "No such clip."},
        {503: "Too much to do, or a model that cannot be loaded."},
    )
    query = _parameter("q", {**STRING, "minLength": 1, "maxLength": limits.query_chars}, "What to find.")
    binary = {"schema": {"type": "string", "format": "binary"}}
    body = {"required": True, "content": dict.fromkeys(("image/*", "video/*", "application/octet-stream"), binary)}
    uploading = {
        408: "The file came too slowly.", 413: f"Larger than {limits.upload_bytes} bytes.", 415: "Neither an image nor a video.",
        422: "It cannot be decoded, or not in time.",
    }  # fmt: skip
    ranged = {206: "The range that was asked for.", 304: "It is what you have.", 416: "There is no such range."}
    file = _operation("The video or image itself.", {"content": {"*/*": binary}}, [token, version], {**wrong, **gone, **busy}) | {}
    file["responses"] |= {str(status): {"description": meaning} for status, meaning in ranged.items()}
    file["responses"]["410"] = {
        "description": "The file has changed or gone since it was indexed.", "content": {"application/json": {"schema": _ref("Error")}},
    }  # fmt: skip
    frame = _parameter("frame", {**WHOLE, "minimum": 0}, "Which frame.", place="path")
    pages = [_parameter("offset", WHOLE, "How many to leave out."), _parameter("limit", WHOLE, "How many to list.")]
    get = {
        "/api/library": _operation("What the library is.", _ref("Library"), [], {}),
        "/api/adapters": _operation("Its adapters.", _list(_ref("Adapter")), [], {}),
        "/api/search": _operation("Clips that match a text best.", _ref("Found"), [query, *chosen], {**wrong, **busy}),
        "/api/clips": _operation("All clips, those that changed last first.", _ref("Clips"), pages, wrong),
        "/api/clips/{token}": _operation("One clip.", _ref("Clip"), [token], {**wrong, **gone}),
        "/api/clips/{token}/similar": _operation("Clips most like one.", _ref("Found"), [token, *chosen], {**wrong, **gone, **busy}),
        "/api/clips/{token}/thumbnails/{frame}": _operation(
            "A small picture of a frame.", {"content": {"image/jpeg": binary}}, [token, frame, version], {**wrong, **gone}
        ),
        "/api/clips/{token}/file": file,
        "/openapi.json": _operation("This description.", {"type": "object"}, [], {}),
    }
    post = _operation(
        "Clips most like an image or a clip, whose file is the body.",
        _ref("Found"),
        chosen,
        {**wrong, **uploading, **busy},
        requestBody=body,
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "xmafast", "version": __version__, "description": "Search in a library of videos and images."},
        "paths": {**{path: {"get": operation} for path, operation in get.items()}, "/api/search/file": {"post": post}},
        "components": {"schemas": SCHEMAS},
    }
