"""Tiny trees of every data set in its published layout: annotation files in their real format, real clips under their names.

Each function writes one and returns what it holds: {split: {id: captions}}.
"""

import json
import shutil

from xmafast.datasets import demo

CLIPS = sorted((demo.ROOT / "clips").glob("*.mp4"))
LSMDC = "1012_Unbreakable_00.05.{:02d}.065-00.05.{:02d}.941"


def put(root, files, clips=()):
    """Write annotation files (text, bytes, or anything else as JSON) and real clips under their published names."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for i, name in enumerate(clips):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            from PIL import Image

            Image.effect_noise((48, 32), 40 + i).convert("RGB").save(path)
        else:
            shutil.copy(CLIPS[i], path)
    return root


def lsmdc(*rows):
    return "".join("\t".join([clip, "00.05.16.065", "00.05.21.941", "00.05.16.065", "00.05.21.941", text]) + "\n" for clip, text in rows)


def msrvtt(root):
    sentences = [{"caption": f"caption {n} of {v}", "video_id": f"video{v}", "sen_id": n} for v in range(8) for n in range(2)]
    sentences += [{"caption": f"val {n}", "video_id": "video6513"} for n in range(2)] + [{"caption": "last", "video_id": "video9999"}]
    put(
        root,
        {
            "MSRVTT_train.9k.csv": "video_id\n" + "".join(f"video{v}\n" for v in range(6)),
            "MSRVTT_train.7k.csv": "video_id\n" + "".join(f"video{v}\n" for v in range(4)),
            "MSRVTT_JSFUSION_test.csv": "key,vid_key,video_id,sentence\nret0,msr6,video6,a woman sings\nret1,msr7,video7,two men\n",
            "MSRVTT_data.json": {"sentences": sentences, "videos": [{"video_id": "video0", "url": "x"}]},
        },
        [f"videos/all/video{v}.mp4" for v in range(8)],
    )
    return {
        "train": {f"video{v}": (f"caption 0 of {v}", f"caption 1 of {v}") for v in range(6)},
        "test": {"video6": ("a woman sings",), "video7": ("two men",)},
    }


def msvd(root):
    ids = [f"-4wsuPCjDBc_{i}_{i + 5}" for i in range(8)]
    put(
        root,
        {
            "train_list.txt": "\n".join(ids[:5]) + "\n",
            "val_list.txt": "\r\n".join(ids[5:6]) + "\r\n",
            "test_list.txt": "\n".join(ids[6:]),
            "captions_msvd.json": {i: [f"a squirrel eats {n} nuts" for n in range(3)] for i in ids},
        },
        [f"YouTubeClips/{i}.avi" for i in ids],
    )
    three = tuple(f"a squirrel eats {n} nuts" for n in range(3))
    return {"train": dict.fromkeys(ids[:5], three), "val": dict.fromkeys(ids[5:6], three), "test": dict.fromkeys(ids[6:], three)}


def vatex(root):
    ids = [f"_abc-{i}_000004_000014" for i in range(8)]
    rows = [{"videoID": i, "enCap": ["A man runs.", "Someone is running."], "chCap": ["一个人在跑"]} for i in ids]
    put(
        root,
        {
            "vatex_training_v1.0.json": rows[:5],
            "vatex_validation_v1.0.json": rows[5:],
            "val_list.txt": ids[5],
            "test_list.txt": "\n".join(ids[6:]),
        },
        [f"videos/{i}.mp4" for i in ids],
    )
    two = ("A man runs.", "Someone is running.")
    return {"train": dict.fromkeys(ids[:5], two), "val": dict.fromkeys(ids[5:6], two), "test": dict.fromkeys(ids[6:], two)}


def activitynet(root):
    ids = [f"v__uOfIm1tFc{i}" for i in range(8)]
    row = {"duration": 55.15, "timestamps": [[0.28, 55.15], [13.79, 54.32]], "sentences": ["A tutorial is given.", "  The coach helps. "]}
    put(
        root,
        {
            "train_ids.json": ids[:5],
            "train.json": dict.fromkeys(ids[:5], row),
            "val_ids.json": [*ids[5:], "v_unannotated"],
            "val_1.json": dict.fromkeys(ids[5:], row),
        },
        [f"videos/{i if n % 2 else i.removeprefix('v_')}.mp4" for n, i in enumerate(ids)],
    )
    paragraph = ("A tutorial is given. The coach helps.",)
    return {"train": dict.fromkeys(ids[:5], paragraph), "test": dict.fromkeys(ids[5:], paragraph)}


def didemo(root):
    ids = [f"1001556{i}@N08_365508_d8b5{ending}" for i, ending in enumerate((".mov", ".", ".avi", ".3gp", ".MTS", ".mpg", ".", ".wmv"))]
    converted = [".mov", ".", ".avi.mp4", ".mp4", ".mts", ".MPG", ".mp4", ".wmv"]  # as people have them: converted, upper case, doubled
    names = [i.rpartition(".")[0] + ending for i, ending in zip(ids, converted, strict=True)]

    def data(some):
        return [{"num_segments": 6, "description": text, "times": [[1, 1]], "video": i} for text in ("a man.", "a dog ") for i in some]

    parts = {"train": ids[:5], "val": ids[5:6], "test": ids[6:]}
    for split, some in parts.items():
        put(root, {f"{split}_list.txt": "\n".join(some) + "\n", f"{split}_data.json": data([*some, "not@listed.mov"])})
    put(root, {}, [f"videos/{name}" for name in names])
    return {split: dict.fromkeys(some, ("a man. a dog",)) for split, some in parts.items()}


def lsmdc_tree(root):
    clips = [LSMDC.format(i, i + 5) for i in range(10, 18)]
    put(
        root,
        {
            "LSMDC16_annos_training.csv": lsmdc(*((clip, "SOMEONE runs.") for clip in clips[:5]), (clips[0], 'He says "stop. ')),
            "LSMDC16_annos_val.csv": lsmdc((clips[5], "She nods.")),
            "LSMDC16_challenge_1000_publictect.csv": lsmdc(*((clip, "They leave.") for clip in clips[6:])),
        },
        [f"videos/1012_Unbreakable/{clip}.avi" for clip in clips],
    )
    train = dict.fromkeys(clips[:5], ("SOMEONE runs.",)) | {clips[0]: ("SOMEONE runs.", 'He says "stop.')}
    return {"train": train, "val": {clips[5]: ("She nods.",)}, "test": dict.fromkeys(clips[6:], ("They leave.",))}


def karpathy(root, name, folders):
    splits = ["train", "train", "train", "restval" if name == "coco" else "train", "train", "val", "test", "test"]
    images, files = [], []
    for i, split in enumerate(splits):
        folder = folders[split not in ("train",)]
        file = f"{i:06d}.jpg"
        where = {"filepath": folder} if name == "coco" else {}
        images.append({"filename": file, "split": split, "sentences": [{"raw": f"A cat {n}.\n"} for n in range(2)], **where})
        files.append(f"{folder}/{file}")
    put(root, {f"dataset_{name}.json": {"images": images, "dataset": name}}, files)
    two = ("A cat 0.", "A cat 1.")
    found = {"train": range(5), "val": range(5, 6), "test": range(6, 8)}
    return {split: {f"{i:06d}.jpg": two for i in some} for split, some in found.items()}


PUBLISHED = {
    "msrvtt": msrvtt,
    "msvd": msvd,
    "vatex": vatex,
    "activitynet": activitynet,
    "didemo": didemo,
    "lsmdc": lsmdc_tree,
    "coco": lambda root: karpathy(root, "coco", ("train2014", "val2014")),
    "flickr30k": lambda root: karpathy(root, "flickr30k", ("flickr30k-images", "flickr30k-images")),
}
