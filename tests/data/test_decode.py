import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features
from skimage import data

from dit_moe.data.prepare.decode import center_crop, decode
from dit_moe.storage import colours, pictures
from dit_moe.storage.colours import on_white
from dit_moe.storage.pictures import ImageError, read_picture

RNG = np.random.default_rng(0)
PHOTOGRAPH = Image.fromarray(data.chelsea())  # 451 x 300
NOISE = RNG.integers(0, 256, (32, 32, 3)).astype(np.uint8)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png_of_chunks(header: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    file = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        body = name + content
        file += struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
    return file


# The crop.


def published_crop(image: Image.Image, size: int) -> np.ndarray:
    """The rule, in the order in which the authors state it."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    image = image.resize(
        tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC
    )
    pixels = np.array(image)
    y, x = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[y : y + size, x : x + size]


@pytest.mark.parametrize("size", [16, 37, 64, 149, 150, 151, 256, 400])
@pytest.mark.parametrize("turned", [False, True])
def test_crop_is_the_published_one(size, turned):
    image = PHOTOGRAPH.transpose(Image.Transpose.ROTATE_90) if turned else PHOTOGRAPH
    crop = np.asarray(center_crop(image, size))
    assert crop.shape == (size, size, 3)
    np.testing.assert_array_equal(crop, published_crop(image, size))


def test_crop_averages_where_sizes_halve():
    """128 = 4 * 32: two halvings, and a bicubic step that does nothing."""
    image_HxWxC = RNG.integers(0, 256, (128, 160, 3))
    crop = np.asarray(center_crop(Image.fromarray(image_HxWxC.astype(np.uint8)), 32))
    means = image_HxWxC.reshape(32, 4, 40, 4, 3).mean(axis=(1, 3))[:, 4:36]
    assert np.abs(crop - means).max() <= 2  # each halving rounds rows, then columns, by up to 1/2


def test_crop_keeps_pixels_of_its_own_size():
    np.testing.assert_array_equal(np.asarray(center_crop(Image.fromarray(NOISE), 32)), NOISE)
    wide = Image.fromarray(np.concatenate([0 * NOISE, NOISE, 0 * NOISE], axis=1))
    np.testing.assert_array_equal(np.asarray(center_crop(wide, 32)), NOISE)


# What is converted. 32 x 32 pictures come back pixel for pixel.


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {"irreversible": False}),
    ],
)
def test_lossless_formats(file_format, options):
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(NOISE), file_format, **options), 32), NOISE
    )


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif():
    file = encoded(Image.fromarray(NOISE), "AVIF", quality=100, subsampling="4:4:4")
    assert np.abs(decode(file, 32).astype(int) - NOISE).max() <= 4


def test_avif_that_this_pillow_cannot_read_is_named(monkeypatch):
    monkeypatch.setattr(pictures.features, "check", lambda feature: None)
    with pytest.raises(ImageError, match=r"AVIF, for which Pillow 11\.3 or newer is needed"):
        read_picture(b"\0\0\0\x1cftypmif1\0\0\0\0avifmif1miaf" + bytes(100))


def heic(image: Image.Image, **options: object) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return encoded(image, "HEIF", **options)


def test_heic():
    """As the photograph was, and upright as its orientation says."""
    sides = PHOTOGRAPH.resize((48, 32))
    file = heic(sides, quality=-1, chroma=444)
    assert np.abs(np.asarray(read_picture(file)).astype(int) - np.asarray(sides)).max() <= 4
    turned = sides.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = read_picture(heic(turned, quality=-1, chroma=444, exif=exif.tobytes()))
    assert upright.size == sides.size
    assert np.abs(np.asarray(upright).astype(int) - np.asarray(sides)).max() <= 4


def test_heic_that_cannot_be_read(monkeypatch):
    file = heic(PHOTOGRAPH)
    for cut in (len(file) // 2, 100):
        with pytest.raises(ImageError, match=r"damaged|not an image"):
            read_picture(file[:cut])
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "MAX_PIXELS", 1000)
        with pytest.raises(ImageError, match="too many pixels"):
            read_picture(file)
    pictures._reads_heic.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"HEIC, for which pillow-heif is needed: pip install"):
        read_picture(file)
    pictures._reads_heic.cache_clear()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_jpeg_is_what_pillow_reads(options):
    file = encoded(PHOTOGRAPH, "JPEG", **options)
    expected = published_crop(Image.open(io.BytesIO(file)).convert("RGB"), 64)
    np.testing.assert_array_equal(decode(file, 64), expected)


def test_greyscale():
    grey = NOISE[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey), "PNG"), 32), expected)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey), "PPM"), 32), expected)


def test_one_bit():
    bits = NOISE[..., 0] > 127
    file = encoded(Image.fromarray(bits), "PNG")
    assert Image.open(io.BytesIO(file)).mode == "1"
    np.testing.assert_array_equal(decode(file, 32)[..., 1], np.where(bits, 255, 0))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(file_format):
    value = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(32, 32)
    crop = decode(encoded(Image.fromarray(value), file_format), 32)
    np.testing.assert_array_equal(crop[..., 2], np.rint(value / 257))
    assert len(np.unique(crop)) == 256


def test_palette():
    image = Image.fromarray(NOISE).quantize(16)
    expected = np.asarray(image.getpalette()).reshape(-1, 3)[np.asarray(image)]
    np.testing.assert_array_equal(decode(encoded(image, "PNG"), 32), expected)
    np.testing.assert_array_equal(decode(encoded(image, "GIF"), 32), expected)


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_transparent_palette_entry_is_white(file_format):
    image = Image.fromarray(NOISE).quantize(16)
    index = np.asarray(image)
    expected = np.asarray(image.getpalette()).reshape(-1, 3)[index]
    expected[index == 3] = 255
    file = encoded(image, file_format, transparency=3)
    np.testing.assert_array_equal(decode(file, 32), expected)


def test_transparent_colour_is_white():
    pixels = NOISE.copy()
    pixels[:7] = (1, 2, 3)
    file = encoded(Image.fromarray(pixels), "PNG", transparency=(1, 2, 3))
    pixels[:7] = 255
    np.testing.assert_array_equal(decode(file, 32), pixels)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_alpha_is_laid_on_white(channels, file_format):
    pixels = RNG.integers(0, 256, (32, 32, channels)).astype(np.uint8)
    mode = {2: "LA", 4: "RGBA"}[channels]
    image = Image.frombytes(mode, (32, 32), pixels.tobytes())
    alpha = pixels[..., -1:] / 255
    expected = pixels[..., :-1] * alpha + 255 * (1 - alpha)
    assert np.abs(decode(encoded(image, file_format), 32) - expected).max() <= 1


def test_grey_and_alpha_are_kept_where_asked_for():
    rgba = RNG.integers(0, 256, (1, 32, 32, 4)).astype(np.uint8)
    rgba[..., 3] |= 1
    rgba[:, :9, :, 3] = 0
    rgba[:, 9:12, :, 3] = 255
    file = encoded(Image.fromarray(rgba[0]), "PNG")
    opaque = decode(file, 32)
    np.testing.assert_array_equal(on_white(rgba)[0], opaque)
    grey = decode(file, 32, 1)
    np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(opaque).convert("L")))
    np.testing.assert_array_equal(on_white(grey[None])[0], grey)

    unseen = rgba.copy()
    unseen[:, :9] = 0
    np.testing.assert_array_equal(decode(file, 32, 4), unseen[0])
    both = decode(file, 32, 2)
    assert both.shape == (32, 32, 2)
    np.testing.assert_array_equal(both[..., 1], rgba[0, ..., 3])
    assert not both[:9].any()
    seen = np.asarray(Image.fromarray(rgba[0, ..., :3]).convert("L"))
    np.testing.assert_array_equal(both[9:, :, 0], np.where(rgba[0, ..., 3] > 0, seen, 0)[9:])
    filled = decode(encoded(Image.fromarray(NOISE), "PNG"), 32, 4)
    np.testing.assert_array_equal(filled, np.dstack([NOISE, np.full_like(NOISE[..., 0], 255)]))


def test_what_is_transparent_does_not_bleed_when_a_picture_shrinks():
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:, :33] = (200, 100, 50, 255)
    rgba[:, 33:, :3] = (0, 255, 0)  # which nobody sees
    crop = decode(encoded(Image.fromarray(rgba), "PNG"), 32, 4)
    assert 0 < crop[0, 16, 3] < 255
    assert np.abs(crop[0, 16, :3] - np.array([200.0, 100, 50])).max() <= 2


def test_cmyk():
    cmyk = RNG.integers(0, 256, (32, 32, 4)).astype(np.uint8)
    file = encoded(Image.frombytes("CMYK", (32, 32), cmyk.tobytes()), "TIFF")
    ink = cmyk / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(decode(file, 32) - expected).max() <= 1.5
    white = Image.new("CMYK", (40, 40))
    assert decode(encoded(white, "JPEG"), 32).min() >= 254


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_rotation_is_applied(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(PHOTOGRAPH, file_format, exif=exif)
    upright = Image.open(io.BytesIO(file))
    ImageOps.exif_transpose(upright, in_place=True)
    np.testing.assert_array_equal(decode(file, 48), published_crop(upright.convert("RGB"), 48))
    if orientation in (5, 6, 7, 8):
        assert upright.size == PHOTOGRAPH.size[::-1]


def test_damaged_exif_is_ignored():
    file = encoded(Image.fromarray(NOISE), "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff\x01\x12\x00")
    np.testing.assert_array_equal(decode(file, 32), NOISE)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_several(file_format):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("#ff0000", "#0000ff")]
    file = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(file)).n_frames == 2  # pyright: ignore
    assert np.abs(decode(file, 32) - np.array([255.0, 0, 0])).max() <= 3


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 1), (32, 32, 3), (32, 32, 4)])
def test_arrays(shape):
    pixels = np.full(shape, 255, np.uint8)
    pixels[..., :3] = RNG.integers(0, 256, pixels[..., :3].shape)
    expected = np.broadcast_to(pixels.reshape(32, 32, -1)[..., :3], (32, 32, 3))
    if shape == (32, 32, 4):
        pixels[..., 3] = 255
        expected = pixels[..., :3]
    if shape == (32, 32):
        expected = np.repeat(pixels[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(pixels, 32), expected)


def png_of_values(depth: int, colour: int, row: bytes, transparent: bytes) -> bytes:
    """A row of two pixels, with one value that is transparent."""
    chunks = (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row))
    return png_of_chunks(struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0), *chunks)


@pytest.mark.parametrize(
    ("depth", "colour", "row", "transparent", "other"),
    [
        (1, 0, b"\x40", b"\0\1", 0),
        (2, 0, b"\x60", b"\0\2", 85),
        (4, 0, b"\x35", b"\0\5", 51),
        (8, 0, b"\x0a\x1e", b"\0\x1e", 10),
        (16, 0, struct.pack(">2H", 257 * 40, 3000), struct.pack(">H", 3000), 40),
        (16, 2, struct.pack(">6H", *3 * [4096], 1, 515, 771), struct.pack(">3H", 1, 515, 771), 16),
    ],
)
def test_transparent_value_of_any_depth_is_white(depth, colour, row, transparent, other):
    picture = read_picture(png_of_values(depth, colour, row, transparent)).convert("RGB")
    assert np.asarray(picture).tolist() == [[[other] * 3, [255] * 3]]


# Profiles.


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))


def profile(space: bytes = b"RGB ", gamma: float = 563 / 256) -> bytes:
    """An ICC profile of Adobe RGB (1998), or of grey with a gamma.

    Source: its specification, sections 4.3 (gamma) and, adapted to D50, 4.2 (primaries).
    """
    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(256 * gamma))

    def colour(*xyz: float) -> bytes:
        return b"XYZ " + bytes(4) + fixed(*xyz)

    tags = {b"wtpt": colour(0.9642, 1, 0.8249)}
    if space == b"RGB ":
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
        tags[b"rXYZ"] = colour(0.60974, 0.31111, 0.01947)
        tags[b"gXYZ"] = colour(0.20528, 0.62567, 0.06087)
        tags[b"bXYZ"] = colour(0.14919, 0.06322, 0.74457)
    else:
        tags[b"kTRC"] = curve
    table, content = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(content), len(body))
        content += body
    header = struct.pack(">I4xI4s4s4s12x4s24x", 0, 0x02400000, b"mntr", space, b"XYZ ", b"acsp")
    header += fixed(0.9642, 1, 0.8249)
    whole = header.ljust(128, b"\0") + table + content
    return struct.pack(">I", len(whole)) + whole[4:]


def test_profiles_are_converted_to_srgb():
    """Adobe RGB stores sRGB's green 40,200,60 as 117,199,75."""
    adobe = profile()
    for image in (Image.new("RGB", (8, 8), (117, 199, 75)), Image.new("P", (8, 8), 1)):
        image.putpalette([0, 0, 0, 117, 199, 75]) if image.mode == "P" else None
        for file_format in ("PNG", "TIFF"):
            crop = decode(encoded(image, file_format, icc_profile=adobe), 8)
            assert np.abs(crop - [40, 200, 60]).max() <= 3
    clear = Image.new("RGBA", (8, 8), (117, 199, 75, 255))
    clear.putpixel((0, 0), (117, 199, 75, 0))
    crop = decode(encoded(clear, "PNG", icc_profile=adobe), 8)
    assert np.abs(crop[1] - [40, 200, 60]).max() <= 3
    assert crop[0, 0].tolist() == [255, 255, 255]


def test_grey_profile():
    grey = Image.new("L", (8, 8), 128)
    linear = read_picture(encoded(grey, "PNG", icc_profile=profile(b"GRAY", 1)))
    assert linear.mode == "L"
    assert abs(np.asarray(linear)[0, 0].item() - 188) <= 1  # sRGB's code of half the light


def test_profiles_that_say_nothing_change_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cut = bytearray(profile())
    cut[40:] = bytes(len(cut) - 40)
    for block in (srgb, bytes(cut), b"no profile", profile(b"GRAY")):
        file = encoded(Image.fromarray(NOISE), "PNG", icc_profile=block)
        np.testing.assert_array_equal(decode(file, 32), NOISE)


@pytest.mark.parametrize("before", [True, False])
def test_large_texts_and_profiles_do_not_hide_a_picture(before, monkeypatch):
    text = (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(2**21)))
    rows = b"".join(b"\0" + row.tobytes() for row in NOISE)
    pixels = (b"IDAT", zlib.compress(rows))
    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    file = png_of_chunks(header, *((text, pixels) if before else (pixels, text)))
    np.testing.assert_array_equal(decode(file, 32), NOISE)
    decode(encoded(Image.fromarray(NOISE), "PNG", icc_profile=profile() + bytes(2**21)), 32)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 2**20)
    assert reason(file) == "too much text or too large a profile"


# What is rejected.


def png_of_declared_size(width: int, height: int) -> bytes:
    return png_of_chunks(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), (b"IDAT", b""))


def reason(file: bytes, size: int = 32) -> str:
    with pytest.raises(ImageError) as info:
        decode(file, size)
    return str(info.value)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (b"", "empty file"),
        (b"\0" * 1000, "not an image"),
        (b"a text about a picture", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (png_of_declared_size(9000, 9000), "too many pixels"),
        (png_of_declared_size(100_000, 100_000), "too many pixels"),
        (png_of_declared_size(30, 30), "truncated or damaged"),
        (encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "floating-point pixels"),
        (encoded(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), "32-bit pixels"),
        (encoded(Image.fromarray(np.full((8, 8), -1, np.int32)), "TIFF"), "32-bit pixels"),
        (encoded(Image.new("RGB", (1, 65_000)), "PNG"), "too long and thin"),
        (encoded(Image.new("RGB", (65_000, 1)), "PNG"), "too long and thin"),
    ],
)
def test_unusable_files(file, expected):
    assert reason(file, 256 if "thin" in expected else 32) == expected


@pytest.mark.parametrize(
    "file_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"]
)
def test_cut_files_are_rejected_wherever_they_end(file_format):
    file = encoded(PHOTOGRAPH.resize((90, 60)), file_format)
    reasons = {reason(file[: int(len(file) * share)]) for share in np.linspace(0.01, 0.95, 20)}
    assert reasons <= {"truncated or damaged", "not an image"}
    assert "truncated or damaged" in reasons or file_format == "WEBP"  # a cut header, to Pillow


@pytest.mark.parametrize(
    "file_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"]
)
def test_damaged_files_raise_nothing_else(file_format):
    """The picture may be odd then, but it is one."""
    file = encoded(PHOTOGRAPH.resize((24, 18)), file_format)
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(file)
        for _ in range(int(rng.integers(1, 4))):
            damaged[rng.integers(min(len(file), 400))] ^= rng.integers(1, 256)
        try:
            crop = decode(bytes(damaged), 16)
        except ImageError:
            continue
        assert crop.shape == (16, 16, 3)
        assert crop.dtype == np.uint8


def test_colours_that_pillow_cannot_convert():
    with pytest.raises(colours.ColourError, match="unknown colours"):
        colours.in_srgb(Image.new("La", (8, 8)))


def test_limit_is_checked_before_pixels_are_read(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 32 * 32)
    assert decode(encoded(Image.new("RGB", (32, 32)), "PNG"), 16).shape == (16, 16, 3)
    cut = encoded(Image.new("RGB", (33, 32)), "PNG")[:60]
    assert reason(cut) == "too many pixels"
