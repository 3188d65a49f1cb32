//! Making images smaller
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#thumbnails)): pure, but for reading the file. What is
//! decoded here comes from strangers, so its size is looked at before anything is made room for, and of formats
//! with many images only the first is decoded.

use std::io::{BufRead, Cursor, Seek};

use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits,
    codecs::{jpeg::JpegEncoder, png::PngDecoder, webp::WebPDecoder},
    imageops::FilterType,
    metadata::Orientation,
};

/// The quality of thumbnails that are JPEGs.
const QUALITY: u8 = 80;

/// What is to be made of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) method: Method,
    /// Whether it may move.
    pub(crate) animated: bool,
}

/// How an image is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Fills the size, and loses what does not fit.
    Crop,
    /// Keeps its shape, and fits into the size.
    Scale,
}

/// A smaller image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: &'static str,
}

/// Why an image cannot be made smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PictureError {
    #[error("not an image of a known format")]
    Unknown,
    #[error("the image is too large")]
    TooLarge,
}

/// The formats that are decoded.
const FORMATS: [ImageFormat; 4] = [
    ImageFormat::Gif,
    ImageFormat::Jpeg,
    ImageFormat::Png,
    ImageFormat::WebP,
];

/// What must be done for a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing: the image, of this content type, is small enough as it is.
    Original(&'static str),
    /// The image, of so many pixels, must be decoded.
    Make { pixels: u64 },
}

/// What the first bytes of a file say that it is: the content type, if it is an image that can be decoded.
pub(crate) fn sniff(content: impl BufRead + Seek) -> Option<&'static str> {
    let reader = ImageReader::new(content).with_guessed_format().ok()?;
    let format = reader.format().filter(|format| FORMATS.contains(format))?;
    Some(format.to_mime_type())
}

/// Width and height, from the header alone.
pub(crate) fn dimensions(content: impl BufRead + Seek) -> Option<(u32, u32)> {
    let reader = ImageReader::new(content).with_guessed_format().ok()?;
    let known = reader.format().is_some_and(|f| FORMATS.contains(&f));
    known.then(|| reader.into_dimensions().ok())?
}

/// Decides by the header alone what must be done.
pub(crate) fn plan(
    mut content: impl BufRead + Seek,
    wish: Wish,
    max_pixels: u64,
) -> Result<Plan, PictureError> {
    let (format, mut decoder) = decoder(&mut content, max_pixels)?;
    let pixels = pixels(decoder.dimensions());
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let target = target(turned(decoder.dimensions(), orientation), wish);
    drop(decoder);
    if target.is_none() && (wish.animated || !moves(content, format)) {
        return Ok(Plan::Original(format.to_mime_type()));
    }
    Ok(Plan::Make { pixels })
}

/// Makes an image smaller that has at most `max_pixels`.
pub(crate) fn shrink(
    content: impl BufRead + Seek,
    wish: Wish,
    max_pixels: u64,
) -> Result<Picture, PictureError> {
    let (format, mut decoder) = decoder(content, max_pixels)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let target = target(turned(decoder.dimensions(), orientation), wish);
    let mut image = DynamicImage::from_decoder(decoder).map_err(|error| refused(&error))?;
    image.apply_orientation(orientation);
    let image = match target {
        // The first of several images, which must not move.
        None => image,
        Some(target) => fit(&image, target),
    };
    encode(image, format)
}

/// A decoder that has read the header, and will not make room for more than it may.
fn decoder<'a>(
    content: impl BufRead + Seek + 'a,
    max_pixels: u64,
) -> Result<(ImageFormat, impl ImageDecoder + 'a), PictureError> {
    let mut reader = ImageReader::new(content)
        .with_guessed_format()
        .map_err(|_| PictureError::Unknown)?;
    let format = reader.format().filter(|format| FORMATS.contains(format));
    let format = format.ok_or(PictureError::Unknown)?;
    let mut limits = Limits::default();
    // Eight bytes a pixel is the most that these formats have; a decoder also keeps something for itself.
    let room = max_pixels.saturating_mul(8).saturating_add(16 << 20);
    limits.max_alloc = Some(room);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| refused(&error))?;
    if pixels(decoder.dimensions()) > max_pixels {
        return Err(PictureError::TooLarge);
    }
    Ok((format, decoder))
}

fn pixels((width, height): (u32, u32)) -> u64 {
    u64::from(width) * u64::from(height)
}

/// Whether a file may hold more than one image.
fn moves(mut content: impl BufRead + Seek, format: ImageFormat) -> bool {
    if content.rewind().is_err() {
        return true;
    }
    match format {
        ImageFormat::Png => PngDecoder::new(content)
            .and_then(|png| png.is_apng())
            .unwrap_or(true),
        ImageFormat::WebP => WebPDecoder::new(content).map_or(true, |webp| webp.has_animation()),
        // To know it of a GIF it has to be read.
        ImageFormat::Gif => true,
        _ => false,
    }
}

fn refused(error: &ImageError) -> PictureError {
    match error {
        ImageError::Limits(_) => PictureError::TooLarge,
        _ => PictureError::Unknown,
    }
}

/// Width and height as they are seen.
fn turned((width, height): (u32, u32), orientation: Orientation) -> (u32, u32) {
    match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (height, width),
        _ => (width, height),
    }
}

/// What is cut out of an image, and how large it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    /// Left, top, width, height.
    cut: (u32, u32, u32, u32),
    size: (u32, u32),
}

/// `None` if the image is not larger than what is wished: nothing is ever made larger.
fn target((width, height): (u32, u32), wish: Wish) -> Option<Target> {
    if width == 0 || height == 0 {
        return None;
    }
    let (w, h) = (u64::from(width), u64::from(height));
    let (to_w, to_h) = (u64::from(wish.width), u64::from(wish.height));
    let narrow = |n: u64| u32::try_from(n.max(1)).unwrap_or(u32::MAX);
    match wish.method {
        Method::Scale => {
            if w <= to_w && h <= to_h {
                return None;
            }
            // The side that fits exactly decides about the other.
            let size = if w * to_h >= h * to_w {
                (to_w, (h * to_w).div_ceil(w))
            } else {
                ((w * to_h).div_ceil(h), to_h)
            };
            Some(Target {
                cut: (0, 0, width, height),
                size: (narrow(size.0), narrow(size.1)),
            })
        }
        Method::Crop => {
            // The largest part of the wished shape, as large as is wished or as it is.
            let (cut_w, cut_h) = if w * to_h >= h * to_w {
                ((h * to_w / to_h).max(1), h)
            } else {
                (w, (w * to_h / to_w).max(1))
            };
            let size = if cut_w > to_w {
                (to_w, to_h)
            } else {
                (cut_w, cut_h)
            };
            if size == (w, h) {
                return None;
            }
            Some(Target {
                cut: (
                    u32::try_from((w - cut_w) / 2).unwrap_or(0),
                    u32::try_from((h - cut_h) / 2).unwrap_or(0),
                    narrow(cut_w),
                    narrow(cut_h),
                ),
                size: (narrow(size.0), narrow(size.1)),
            })
        }
    }
}

fn fit(image: &DynamicImage, target: Target) -> DynamicImage {
    let (left, top, width, height) = target.cut;
    let (to_width, to_height) = target.size;
    let whole = (0, 0, image.width(), image.height()) == target.cut;
    let part;
    let image = if whole {
        image
    } else {
        part = image.crop_imm(left, top, width, height);
        &part
    };
    if (width, height) == (to_width, to_height) {
        return image.clone();
    }
    // Averaging is quick and good when much is averaged.
    if width / 2 >= to_width && height / 2 >= to_height {
        image.thumbnail_exact(to_width, to_height)
    } else {
        image.resize_exact(to_width, to_height, FilterType::Triangle)
    }
}

/// Photographs become JPEGs; what has transparent or exact colors stays so.
fn encode(image: DynamicImage, format: ImageFormat) -> Result<Picture, PictureError> {
    let mut bytes = Vec::new();
    let photograph = match format {
        ImageFormat::Jpeg => true,
        ImageFormat::WebP => !image.has_alpha(),
        _ => false,
    };
    let content_type = if photograph {
        let image = DynamicImage::from(image.into_rgb8());
        JpegEncoder::new_with_quality(&mut bytes, QUALITY)
            .encode_image(&image)
            .map_err(|error| refused(&error))?;
        "image/jpeg"
    } else {
        let image = DynamicImage::from(image.into_rgba8());
        image
            .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
            .map_err(|error| refused(&error))?;
        "image/png"
    };
    Ok(Picture {
        bytes,
        content_type,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    const MOST: u64 = 1_000_000;

    fn wish(width: u32, height: u32, method: Method) -> Wish {
        Wish {
            width,
            height,
            method,
            animated: false,
        }
    }

    fn png(width: u32, height: u32) -> Vec<u8> {
        let image = image::RgbaImage::from_fn(width, height, |x, y| {
            image::Rgba([x.to_le_bytes()[0], y.to_le_bytes()[0], 0, 255])
        });
        let mut bytes = Vec::new();
        let mut out = Cursor::new(&mut bytes);
        image.write_to(&mut out, ImageFormat::Png).unwrap();
        bytes
    }

    #[test]
    fn sizes_are_those_of_the_specification() {
        for (from, to, method, expected) in [
            ((1000, 500), (320, 240), Method::Scale, Some((320, 160))),
            ((500, 1000), (320, 240), Method::Scale, Some((120, 240))),
            ((1000, 500), (32, 32), Method::Crop, Some((32, 32))),
            ((1000, 20), (96, 96), Method::Crop, Some((20, 20))),
            ((10_000, 1), (96, 96), Method::Scale, Some((96, 1))),
            ((30, 20), (32, 32), Method::Scale, None),
            ((20, 20), (32, 32), Method::Crop, None),
        ] {
            let target = target(from, wish(to.0, to.1, method));
            assert_eq!(
                target.map(|target| target.size),
                expected,
                "{from:?} {to:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn nothing_grows(
            from in (1_u32..60_000, 1_u32..60_000), to in (1_u32..2_000, 1_u32..2_000), crop: bool,
        ) {
            let method = if crop { Method::Crop } else { Method::Scale };
            if let Some(target) = target(from, wish(to.0, to.1, method)) {
                prop_assert!(target.size.0 <= from.0 && target.size.1 <= from.1);
                prop_assert!(target.size.0 <= to.0 && target.size.1 <= to.1);
                let (left, top, width, height) = target.cut;
                prop_assert!(left + width <= from.0 && top + height <= from.1);
            }
        }

        #[test]
        fn nonsense_is_refused(bytes in any::<Vec<u8>>(), format in 0_usize..4) {
            let starts: [&[u8]; 4] = [b"GIF89a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8 "];
            let bytes = [starts[format], &bytes].concat();
            let wish = wish(32, 32, Method::Crop);
            prop_assert!(shrink(Cursor::new(bytes), wish, MOST).is_err());
        }
    }

    #[test]
    fn an_image_becomes_smaller() {
        let content = png(300, 200);
        let small = shrink(Cursor::new(&content), wish(96, 96, Method::Crop), MOST).unwrap();
        assert_eq!(small.content_type, "image/png");
        assert_eq!(dimensions(Cursor::new(&small.bytes)), Some((96, 96)));
        let plan = |width, most| {
            let wish = wish(width, 300, Method::Scale);
            plan(Cursor::new(&content), wish, most)
        };
        assert_eq!(plan(300, MOST), Ok(Plan::Original("image/png")));
        assert_eq!(plan(200, MOST), Ok(Plan::Make { pixels: 60_000 }));
        assert_eq!(plan(200, 59_999), Err(PictureError::TooLarge));
    }

    /// A header that promises more than there is: nothing is made room for.
    #[test]
    fn a_bomb_is_refused() {
        let mut bomb = png(1, 1);
        bomb[16..24].copy_from_slice(&[0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50]);
        let crc = crc(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        let refused = shrink(Cursor::new(&bomb), wish(32, 32, Method::Crop), MOST);
        assert_eq!(refused, Err(PictureError::TooLarge));
    }

    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
            })
        })
    }
}
