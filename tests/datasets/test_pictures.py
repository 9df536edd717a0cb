"Pictures of every kind are seen as a person sees them, in every loader, or refused by name."

import io
import json
import os
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hglmm.datasets.grandf import GranDf
from hglmm.datasets.panoptic import Panoptic
from hglmm.datasets.pictures import as_picture, open_image
from hglmm.datasets.png import PNG
from hglmm.datasets.reasonseg import ReasonSeg
from hglmm.datasets.refcoco import RefCOCO
from hglmm.errors import DataError, SettingError

CASES = Path(__file__).parents[3] / "shared" / "cases"
WHITE = (255, 255, 255)


def scene() -> Image.Image:
    "Four fields of different colours: no turn and no mirror looks like another."
    picture = Image.new("RGB", (48, 32), (250, 250, 250))
    for box, colour in {(0, 0, 24, 16): (220, 30, 40), (24, 0, 48, 16): (30, 160, 60), (0, 16, 24, 32): (40, 60, 200)}.items():
        picture.paste(colour, box)
    return picture


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def close(picture: Image.Image, expected: Image.Image | np.ndarray, tolerance: int = 0) -> bool:
    found, expected = np.asarray(picture).astype(int), np.asarray(expected).astype(int)
    assert picture.mode == "RGB" and found.shape == expected.shape
    return bool(np.abs(found - expected).max() <= tolerance)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    "A PNG file, written by hand: Pillow writes few of the kinds that others write."
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)


def tiff(width: int, height: int, bits: int, pixels: bytes, photometric: int = 1, order: str = "<", **more: int) -> bytes:
    "A grey TIFF file of one strip, written by hand."
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 200, 277: 1, 278: height, 279: len(pixels), **{int(k[1:]): v for k, v in more.items()}}
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags)) + entries
    return head.ljust(200, b"\0") + pixels


MODES = ["RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "P"]
GREYS = ["L", "LA", "PA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N", "La"]


def as_lab(picture: Image.Image) -> Image.Image:
    from PIL import ImageCms

    return ImageCms.profileToProfile(picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode == "RGBa":
        return picture.convert("RGBA").convert("RGBa")
    if mode == "La":
        return picture.convert("LA").convert("La")
    if mode == "PA":
        return picture.convert("L").convert("P").convert("PA")
    if mode in ("I;16", "I;16N", "I;16L", "I;16B"):
        deep = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        return Image.frombytes(mode, picture.size, deep.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    return {"LAB": as_lab, "P": Image.Image.quantize}.get(mode, lambda image: image.convert(mode))(picture)


@pytest.mark.parametrize("mode", MODES)
def test_colour_in_any_mode(mode: str) -> None:
    assert close(as_picture(in_mode(scene(), mode)), scene(), 8 if mode in ("YCbCr", "LAB", "HSV") else 0)  # in 8 bits a channel


@pytest.mark.parametrize("mode", GREYS)
def test_grey_in_any_mode(mode: str) -> None:
    grey = scene().convert("L")
    assert close(as_picture(in_mode(scene(), mode)), np.asarray(grey.convert("RGB")))


def test_two_colours() -> None:
    bits = np.eye(5, dtype=bool)
    assert close(as_picture(Image.fromarray(bits)), np.repeat(255 * bits[..., None], 3, -1))


FILES = [("PNG", {}, 0), ("TIFF", {}, 0), ("TIFF", {"compression": "tiff_lzw"}, 0), ("BMP", {}, 0), ("WEBP", {"lossless": True}, 0), ("GIF", {}, 0), ("PPM", {}, 0),
         ("TGA", {}, 0), ("JPEG2000", {}, 0), ("JPEG", {"quality": 95, "subsampling": 0}, 30), ("JPEG", {"progressive": True, "quality": 95, "subsampling": 0}, 30), ("ICO", {"sizes": [(16, 11), (48, 32)]}, 0)]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "tolerance"), FILES)
def test_file_formats(kind: str, options: dict, tolerance: int, tmp_path: Path) -> None:
    (tmp_path / "a.picture").write_bytes(saved(scene(), kind, **options))
    assert close(open_image(tmp_path / "a.picture"), scene(), tolerance)


@pytest.mark.parametrize(("kind", "mode", "options"), [("JPEG", "CMYK", {"quality": 100}), ("TIFF", "CMYK", {}), ("TIFF", "LAB", {}), ("TIFF", "YCbCr", {}), ("PNG", "P", {"bits": 4})])
def test_files_in_other_colour_spaces(kind: str, mode: str, options: dict) -> None:
    content = saved(in_mode(scene(), mode), kind, **options)
    assert Image.open(io.BytesIO(content)).mode == mode  # Adobe's CMYK is stored upside down, which Pillow undoes
    assert close(as_picture(content), scene(), 12)


STEPS = np.array([[0, 257, 1000, 12850, 32768, 65535]], np.uint16)
SHADES = [0, 1, 4, 50, 128, 255]


@pytest.mark.parametrize("content", [
    saved(Image.fromarray(STEPS), "PNG"),
    saved(Image.fromarray(STEPS), "TIFF"),
    saved(Image.fromarray(STEPS), "TIFF", compression="tiff_adobe_deflate"),
    tiff(6, 1, 16, STEPS.astype(">u2").tobytes(), order=">"),
    tiff(6, 1, 16, (65535 - STEPS).tobytes(), photometric=0),
    tiff(6, 1, 32, STEPS.astype("<i4").tobytes(), t339=2),
    tiff(6, 1, 32, (STEPS / 65535).astype("<f4").tobytes(), t339=3),
    tiff(6, 1, 32, (STEPS / 65535 * 40 - 9.5).astype("<f4").tobytes(), t339=3),
    b"P5 6 1 65535\n" + STEPS.astype(">u2").tobytes(),
    saved(Image.fromarray(STEPS), "JPEG2000", irreversible=False),
    png(6, 1, 16, 2, b"\0" + STEPS.repeat(3).astype(">u2").tobytes()),
    png(6, 1, 16, 4, b"\0" + np.stack([STEPS, STEPS * 0 + 65535], -1).astype(">u2").tobytes()),
], ids=["png", "tiff", "tiff-deflate", "tiff-big-endian", "tiff-white-is-zero", "tiff-int32", "tiff-float", "tiff-own-range", "pgm", "jp2", "png-rgb", "png-grey-alpha"])  # fmt: skip
def test_levels_are_scaled_and_not_cut_off(content: bytes) -> None:
    found = np.asarray(as_picture(content)).astype(int)
    assert found.shape == (1, 6, 3) and np.abs(found[0] - np.array(SHADES)[:, None]).max() <= 1


def test_twelve_bits_and_few_bits() -> None:
    twelve = tiff(4, 1, 12, bytes([0xFF, 0xF0, 0x00, 0x80, 0x00, 0x10]))
    assert np.asarray(as_picture(twelve))[0, :, 0].tolist() == [255, 0, 128, 1]
    dark = np.array([[0, 100, 254, 200]], ">u2")  # nearly black, though it would be bright at 8 bits
    for content in (b"P5 4 1 65535\n" + dark.tobytes(), saved(Image.fromarray(dark.astype(np.uint16)), "PNG")):
        assert np.asarray(as_picture(content)).max() == 1
    for depth, row, shades in [(1, 0b01010000, [0, 255, 0, 255]), (2, 0b00011011, [0, 85, 170, 255])]:
        assert np.asarray(as_picture(png(4, 1, depth, 0, bytes([0, row]))))[0, :, 1].tolist() == shades


def test_values_that_are_no_levels_are_refused() -> None:
    for wrong in (np.nan, np.inf):
        values = np.full((2, 2), 0.5, np.float32)
        values[0, 1] = wrong
        with pytest.raises(SettingError, match=r"picture: cannot be read as a picture \(it holds values that are no numbers"):
            as_picture(Image.fromarray(values))


def test_what_is_transparent_is_white() -> None:
    alpha = np.full((32, 48), 255, np.uint8)
    alpha[:16] = 0
    expected = scene()
    expected.paste(WHITE, (0, 0, 48, 16))
    clear = scene()
    clear.putalpha(Image.fromarray(alpha))
    for kind, options in [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True}), ("TGA", {}), ("JPEG2000", {})]:
        assert close(as_picture(saved(clear, kind, **options)), expected), kind
    assert close(as_picture(clear.convert("RGBa")), expected)
    assert close(as_picture(np.asarray(clear)), expected)


def test_half_transparent_is_half_white() -> None:
    for mode, colour, expected in [("RGBA", (100, 0, 200, 128), (177, 127, 227)), ("LA", (100, 128), (177, 177, 177))]:
        found = np.asarray(as_picture(saved(Image.new(mode, (2, 2), colour), "PNG")))[0, 0]
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_transparent_colours_of_palettes_and_of_any_bit_depth() -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    palette.putdata([0, 1, 2])
    assert np.asarray(as_picture(saved(palette, "PNG", transparency=1)))[0].tolist() == [[10, 20, 30], [255, 255, 255], [0, 0, 250]]
    assert np.asarray(as_picture(saved(palette, "PNG", transparency=bytes([255, 255, 0]))))[0].tolist() == [[10, 20, 30], [200, 0, 0], [255, 255, 255]]
    assert np.asarray(as_picture(saved(palette, "GIF", transparency=0)))[0].tolist() == [[255, 255, 255], [200, 0, 0], [0, 0, 250]]
    for depth, colour, row, key, expected in [
        (1, 0, bytes([0b01000000]), [0], [255, 255]),
        (2, 0, bytes([0b01100000]), [1], [255, 170]),
        (4, 0, bytes([0x35]), [3], [255, 85]),
        (8, 0, bytes([7, 9]), [7], [255, 9]),
        (16, 0, struct.pack(">2H", 771, 2570), [771], [255, 10]),
        (8, 2, bytes([1, 2, 3, 4, 4, 4]), [1, 2, 3], [255, 4]),
        (16, 2, struct.pack(">6H", 4660, 22136, 39612, 1028, 1028, 1028), [4660, 22136, 39612], [255, 4]),
    ]:
        content = png(2, 1, depth, colour, b"\0" + row, (b"tRNS", struct.pack(f">{len(key)}H", *key)))
        assert np.asarray(as_picture(content))[0].tolist() == [[v] * 3 for v in expected], (depth, colour)


UNTURN = {1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}


def on_its_side(picture: Image.Image, tag: int, kind: str = "PNG", **options) -> bytes:
    "A file whose EXIF says how to turn it; turned, it is the picture again."
    exif = Image.Exif()
    exif[0x0112] = tag
    return saved(picture.transpose(Image.Transpose[UNTURN[tag]]) if UNTURN[tag] else picture, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_orientation(tag: int, kind: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}, "MPO": {"quality": 95, "subsampling": 0}}.get(kind, {})
    content = on_its_side(scene(), tag, kind, **options)
    turned = as_picture(content)
    assert close(turned, scene(), 30 if kind in ("JPEG", "MPO") else 0)
    assert close(as_picture(turned), turned) and close(as_picture(Image.open(io.BytesIO(content))), turned)  # once is enough


def test_orientation_meets_depth_and_alpha() -> None:
    deep = Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) * 257)
    assert close(as_picture(on_its_side(deep, 6)), scene().convert("L").convert("RGB"))
    clear = scene().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 24, 16))
    expected = scene()
    expected.paste(WHITE, (0, 0, 24, 16))
    assert close(as_picture(on_its_side(clear, 8)), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02x\0\0\0\0\0\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0"])
def test_exif_that_says_nothing(exif: bytes) -> None:
    assert close(as_picture(saved(scene(), "JPEG", exif=exif, quality=95, subsampling=0)), scene(), 30)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_picture_of_several(kind: str) -> None:
    others = [Image.new("RGB", (48, 32), colour) for colour in ("black", "yellow")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(scene(), kind, save_all=True, append_images=others, **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3 and close(as_picture(content), scene())


def test_no_warning_is_let_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        palette = scene().convert("P")
        palette.info["transparency"] = bytes(range(255))
        as_picture(palette)
        as_picture(png(9500, 9500, 1, 0, b"\0" * (1188 + 1) * 9500))  # 90 megapixels: large, not too large


def broken_files() -> dict[str, tuple[bytes, str]]:
    whole = saved(scene(), "PNG")
    damaged = bytearray(whole)
    damaged[-30] ^= 4
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    return {
        "empty.jpg": (b"", "it is empty"), "page.jpg": (b"<!DOCTYPE html><html>", "it begins with b'<!DOCTYPE html"), "lfs.png": (b"version https://git-lfs.github.com/spec/v1\n", "version https"),
        "half.png": (whole[: len(whole) // 2], "cut short"), "end.png": (whole[:-12], "cut short or damaged"), "damaged.png": (bytes(damaged), "broken PNG file"),
        "half.jpg": (saved(noise, "JPEG")[:900], "cut short"), "half.tif": (saved(noise, "TIFF")[:900], "cut short"), "half.webp": (saved(noise, "WEBP")[:300], "cut short"),
        "half.bmp": (saved(noise, "BMP")[:900], "cut short"), "half.gif": (saved(noise, "GIF")[:900], "cut short"), "zero.png": (png(0, 3, 8, 2, b""), "cannot be read as a picture"),
        "large.png": (png(20_000, 10_000, 8, 0, b""), "too large"), "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "nothing downloaded is run"),
        "array.npy": (b"\x93NUMPY\x01\0v\0{'descr'", "it begins with"), "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it begins with b"),
    }  # fmt: skip


@pytest.mark.parametrize("name", broken_files())
def test_a_broken_picture_is_named(name: str, tmp_path: Path) -> None:
    content, word = broken_files()[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as failed:
        as_picture(tmp_path / name)
    assert str(failed.value).startswith(f"{tmp_path / name}: ") and word in str(failed.value)
    with pytest.raises(SettingError, match="picture: "):
        as_picture(content)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    odd = {tmp_path: "a folder", tmp_path / "pipe.jpg": "not a file with a content", "/dev/null": "not a file with a content", tmp_path / "gone.jpg": "no such picture",
           tmp_path / "loop.jpg": "no picture can be looked for", "a\0b": "no picture can be looked for", "a" * 5000: "no picture can be looked for", "/proc/self/mem": "/proc/self/mem"}  # fmt: skip
    for path, word in odd.items():
        with pytest.raises(DataError, match=word) as failed:
            as_picture(path)
        assert len(str(failed.value)) < 800


def test_a_file_that_breaks_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(saved(Image.effect_noise((64, 64), 60), "JPEG")[:-300])
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read as a picture"):
        as_picture(Image.open(tmp_path / "a.jpg"))


# --- the loaders: one picture, four benchmarks ---

SQUARE = [[2, 2, 20, 2, 20, 12, 2, 12]]


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def res(folder: Path, name: str, size: tuple[int, int]) -> RefCOCO:
    width, height = size
    instances = {"images": [{"id": 1, "file_name": name, "height": height, "width": width}], "categories": [{"id": 1, "name": "cup"}],
                 "annotations": [{"id": 5, "image_id": 1, "category_id": 1, "segmentation": SQUARE}]}  # fmt: skip
    refs = [{"ref_id": 3, "ann_id": 5, "split": "val", "sentences": [{"raw": "a cup", "sent": "a cup", "sent_id": 1}]}]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    return RefCOCO(write_json(folder / "instances.json", instances), folder / "refs(unc).p", folder, "val")


def narrated(folder: Path, name: str, size: tuple[int, int]) -> PNG:
    codes = Image.new("RGB", size, (9, 0, 0))
    codes.paste((7, 1, 0), (2, 2, 12, 12))
    codes.save(folder / "codes.png")
    segments = [{"id": 9, "category_id": 1, "area": size[0] * size[1] - 100}, {"id": 263, "category_id": 1, "area": 100}]
    panoptic = {"images": [{"id": 1, "file_name": name}], "categories": [{"id": 1, "name": "cup", "isthing": 1}],
                "annotations": [{"image_id": 1, "file_name": "codes.png", "segments_info": segments}]}  # fmt: skip
    told = [{"image_id": 1, "annotator_id": 0, "segments": [{"utterance": "a cup", "segment_ids": [263], "plural": False}]}]
    return PNG(write_json(folder / "png.json", told), write_json(folder / "panoptic.json", panoptic), folder, folder)


def described(folder: Path, name: str, size: tuple[int, int]) -> GranDf:
    images = [{"id": Path(name).stem, "width": size[0], "height": size[1]}]
    captions = {"images": images, "annotations": [{"image_id": images[0]["id"], "caption": "a cup", "labels": ["a cup"]}]}
    masks = {"images": images, "annotations": [{"image_id": images[0]["id"], "segmentation": SQUARE}]}
    return GranDf(write_json(folder / "captions.json", captions), write_json(folder / "masks.json", masks), folder)


def asked(folder: Path, name: str, size: tuple[int, int]) -> ReasonSeg:
    shapes = [{"label": "target", "points": [[2, 2], [20, 2], [20, 12], [2, 12]]}]
    inside = folder / "asked"
    inside.mkdir()
    (inside / name).write_bytes((folder / name).read_bytes())
    write_json((inside / name).with_suffix(".json"), {"text": ["what?"], "is_sentence": False, "shapes": shapes})
    return ReasonSeg(inside)


LOADERS = [res, narrated, described, asked]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", ["deep", "clear", "turned", "cmyk"])
def test_loaders_see_what_people_see(loader: Callable, kind: str, tmp_path: Path) -> None:
    deep = Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) * 257)
    clear = scene().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 24, 16))
    white = scene()
    white.paste(WHITE, (0, 0, 24, 16))
    content, expected = {
        "deep": (saved(deep, "PNG"), scene().convert("L").convert("RGB")), "clear": (saved(clear, "PNG"), white),
        "turned": (on_its_side(scene(), 6), scene()), "cmyk": (saved(scene().convert("CMYK"), "TIFF"), scene()),
    }[kind]  # fmt: skip
    (tmp_path / "a.jpg").write_bytes(content)  # names do not decide
    sample = loader(tmp_path, "a.jpg", (48, 32))[0]
    assert close(sample.image, expected) and sample.masks.shape == (1, 32, 48) and sample.masks.any()


@pytest.mark.parametrize("loader", [res, narrated, described])
def test_an_annotation_drawn_on_stored_pixels_keeps_them(loader: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(on_its_side(scene(), 6))
    sample = loader(tmp_path, "a.jpg", (32, 48))[0]
    assert close(sample.image, scene().transpose(Image.Transpose.ROTATE_90)) and sample.masks.shape == (1, 48, 32)


@pytest.mark.parametrize("loader", [res, narrated, described])
def test_a_size_that_fits_neither_way_is_named(loader: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(on_its_side(scene(), 6))
    with pytest.raises(DataError, match=r"a\.jpg: the picture is \(48, 32\).*\(50, 40\)"):
        loader(tmp_path, "a.jpg", (50, 40))[0]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", ["half.png", "large.png", "page.jpg", "empty.jpg"])
def test_loaders_name_a_broken_picture(loader: Callable, name: str, tmp_path: Path) -> None:
    (tmp_path / name.replace("png", "jpg")).write_bytes(broken_files()[name][0])
    name = name.replace("png", "jpg")
    with pytest.raises(DataError, match=rf"{name[:-4]}\.jpg: (cannot be read as a picture|the picture is too large)"):
        loader(tmp_path, name, (48, 32))[0]


def test_the_picture_is_a_folder(tmp_path: Path) -> None:
    for loader in (res, narrated, described):
        folder = tmp_path / loader.__name__
        (folder / "a.jpg").mkdir(parents=True)
        with pytest.raises(DataError, match=r"a\.jpg: a folder"):
            loader(folder, "a.jpg", (48, 32))[0]


def test_segments_are_read_from_the_stored_colours_only(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(saved(scene(), "PNG"))
    narrated(tmp_path, "a.jpg", (48, 32))
    codes = Image.open(tmp_path / "codes.png").convert("RGB")
    expected = np.full((32, 48), 9)
    expected[2:12, 2:12] = 263
    clear = codes.convert("RGBA")
    clear.putalpha(0)
    turned = Image.Exif()
    turned[0x0112] = 3
    for content in (saved(codes, "PNG"), saved(codes.quantize(), "PNG"), saved(clear, "PNG"), saved(codes, "PNG", exif=turned), saved(codes, "PNG", transparency=(7, 1, 0))):
        (tmp_path / "codes.png").write_bytes(content)
        assert (Panoptic(tmp_path / "panoptic.json", tmp_path).id_map(1) == expected).all()
    wide = np.asarray(codes).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    for content, word in [(saved(codes, "JPEG"), "JPEG of mode RGB"), (png(48, 32, 16, 2, rows), "16 bits a channel"), (saved(codes, "TIFF"), "TIFF"), (saved(codes, "PNG")[:-20], "cut short")]:
        (tmp_path / "codes.png").write_bytes(content)
        with pytest.raises(DataError, match=rf"codes\.png: cannot be read as a picture.*{word}"):
            Panoptic(tmp_path / "panoptic.json", tmp_path).id_map(1)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
def test_case_huge_picture() -> None:
    with pytest.raises(DataError, match=r"a\.png: the picture is too large"):
        ReasonSeg(CASES / "huge_picture" / "reason_seg" / "val")[0]
