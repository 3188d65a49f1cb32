//! Taking out of pictures what their makers did not mean to send: where they were taken, when, and
//! with which camera.
//!
//! The picture itself is not touched. Of a JPEG's Exif data only the orientation stays, without
//! which it would be shown lying down.

/// How every PNG begins.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Whether a file that begins so may be one that has metadata.
pub(crate) fn is_picture(head: &[u8]) -> bool {
    head.starts_with(&[0xff, 0xd8]) || head.starts_with(PNG) || head.starts_with(b"RIFF")
}

/// The file without its metadata, if it is a JPEG, PNG or `WebP`; `None` if it is none of them, or is
/// broken.
pub(crate) fn without_metadata(file: &[u8]) -> Option<Vec<u8>> {
    jpeg(file).or_else(|| png(file)).or_else(|| webp(file))
}

/// <https://www.w3.org/Graphics/JPEG/itu-t81.pdf>, annex B.
fn jpeg(file: &[u8]) -> Option<Vec<u8>> {
    let mut rest = file.strip_prefix(&[0xff, 0xd8])?;
    let mut clean = vec![0xff, 0xd8];
    loop {
        while rest.starts_with(&[0xff, 0xff]) {
            rest = rest.get(1..)?;
        }
        let (&[mark, kind, high, low], _) = rest.split_first_chunk()?;
        if mark != 0xff {
            return None;
        }
        let length = 2 + usize::from(u16::from_be_bytes([high, low]));
        let (segment, after) = rest.split_at_checked(length)?;
        match kind {
            // The picture; what follows has no segments that concern us.
            0xda => {
                clean.extend(rest);
                return Some(clean);
            }
            0xe1 => {
                if let Some(orientation) = exif_orientation(segment) {
                    clean.extend(orientation_segment(orientation));
                }
            }
            // Application data and comments; but APP2 holds the color profile, and APP0 and APP14
            // say how to read the picture.
            0xe3..=0xed | 0xef | 0xfe => {}
            _ => clean.extend(segment),
        }
        rest = after;
    }
}

/// The orientation, 1 to 8, in an Exif segment.
fn exif_orientation(segment: &[u8]) -> Option<u8> {
    let tiff = segment.get(4..)?.strip_prefix(b"Exif\0\0")?;
    let big = match tiff.get(..2)? {
        b"MM" => true,
        b"II" => false,
        _ => return None,
    };
    let short = |at: usize| {
        let bytes: [u8; 2] = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        let value = if big {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        };
        Some(usize::from(value))
    };
    let long = |at: usize| {
        let (one, other) = (short(at)?, short(at.checked_add(2)?)?);
        Some(if big {
            (one << 16) | other
        } else {
            (other << 16) | one
        })
    };
    let directory = long(4)?;
    for entry in 0..short(directory)? {
        let at = directory.checked_add(2)?.checked_add(entry * 12)?;
        if short(at)? == 0x0112 {
            let value = u8::try_from(short(at.checked_add(8)?)?).ok()?;
            return (1..=8).contains(&value).then_some(value);
        }
    }
    None
}

/// An Exif segment with an orientation and nothing else.
fn orientation_segment(orientation: u8) -> [u8; 36] {
    let [head @ .., _, _, _, _, _, _, _] = *b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\
        \0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0";
    let mut segment = [0; 36];
    let tail = [orientation, 0, 0, 0, 0, 0, 0];
    for (byte, value) in segment.iter_mut().zip(head.into_iter().chain(tail)) {
        *byte = value;
    }
    segment
}

/// <https://www.w3.org/TR/png-3/#5DataRep>
fn png(file: &[u8]) -> Option<Vec<u8>> {
    let mut rest = file.strip_prefix(PNG)?;
    let mut clean = PNG.to_vec();
    while !rest.is_empty() {
        let (length, _) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (chunk, after) = rest.split_at_checked(length.checked_add(12)?)?;
        let told = [b"eXIf", b"iTXt", b"tEXt", b"tIME", b"zTXt"];
        let kind = chunk.get(4..8)?;
        if !told.iter().any(|name| *name == kind) {
            clean.extend(chunk);
        }
        // Whatever hides behind the end is no picture.
        if kind == b"IEND" {
            break;
        }
        rest = after;
    }
    Some(clean)
}

/// <https://developers.google.com/speed/webp/docs/riff_container>
fn webp(file: &[u8]) -> Option<Vec<u8>> {
    let body = file.strip_prefix(b"RIFF")?;
    let (_, body) = body.split_at_checked(4)?;
    let mut rest = body.strip_prefix(b"WEBP")?;
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let length: [u8; 4] = rest.get(4..8)?.try_into().ok()?;
        let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
        let padded = length.checked_add(length % 2)?.checked_add(8)?;
        let (chunk, after) = rest.split_at_checked(padded)?;
        match chunk.get(..4)? {
            b"EXIF" | b"XMP " => {}
            b"VP8X" => {
                // Its flags say that these chunks are there.
                let mut chunk = chunk.to_vec();
                *chunk.get_mut(8)? &= !0b0000_1100;
                chunks.extend(chunk);
            }
            _ => chunks.extend(chunk),
        }
        rest = after;
    }
    let size = u32::try_from(chunks.len().checked_add(4)?).ok()?;
    let mut clean = b"RIFF".to_vec();
    clean.extend(size.to_le_bytes());
    clean.extend(b"WEBP");
    clean.extend(chunks);
    Some(clean)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    const SECRET: &[u8] = b"48.8584 N 2.2945 E";

    fn segment(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len() + 2).unwrap();
        [&[0xff, kind][..], &length.to_be_bytes(), content].concat()
    }

    /// Exif data with an orientation and a place.
    fn exif(little: bool) -> Vec<u8> {
        let mut tiff = if little {
            b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec()
        } else {
            b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec()
        };
        tiff.extend(SECRET);
        [b"Exif\0\0", &tiff[..]].concat()
    }

    fn has(file: &[u8], part: &[u8]) -> bool {
        file.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn t_att_2_the_place_is_gone_from_a_jpeg_and_the_picture_is_not() {
        for little in [true, false] {
            let exif = segment(0xe1, &exif(little));
            let picture = [&[0xff, 0xda, 0, 2][..], b"the picture \xff\xd9"].concat();
            let parts: [&[u8]; 6] = [
                &[0xff, 0xd8],
                &segment(0xe0, b"JFIF\0"),
                &exif,
                &segment(0xe2, b"ICC_PROFILE"),
                &[segment(0xfe, SECRET), segment(0xed, SECRET)].concat(),
                &picture,
            ];
            let file = parts.concat();
            assert!(has(&file, SECRET), "control");
            let clean = without_metadata(&file).unwrap();
            assert!(!has(&clean, SECRET));
            for part in [&b"JFIF"[..], b"ICC_PROFILE", &picture] {
                assert!(has(&clean, part));
            }
            let kept = orientation_segment(6);
            assert!(has(&clean, &kept), "it lies on its side");
            assert_eq!(exif_orientation(&kept), Some(6));
            assert_eq!(without_metadata(&clean), Some(clean.clone()), "again");
        }
    }

    fn chunk(kind: [u8; 4], content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        [&length[..], &kind, content, b"crc_"].concat()
    }

    #[test]
    fn t_att_2_the_texts_are_gone_from_a_png() {
        let file = [
            b"\x89PNG\r\n\x1a\n".to_vec(),
            chunk(*b"IHDR", b"header"),
            chunk(*b"tEXt", SECRET),
            chunk(*b"eXIf", SECRET),
            chunk(*b"IDAT", b"the picture"),
            chunk(*b"IEND", b""),
            SECRET.to_vec(),
        ];
        let clean = without_metadata(&file.concat()).unwrap();
        assert!(!has(&clean, SECRET));
        for part in [&b"IHDRheader"[..], b"IDATthe picture", b"IEND"] {
            assert!(has(&clean, part));
        }
    }

    #[test]
    fn t_att_2_the_place_is_gone_from_a_webp() {
        let chunk = |kind: &[u8; 4], content: &[u8]| {
            let length = u32::try_from(content.len()).unwrap().to_le_bytes();
            [&kind[..], &length, content].concat()
        };
        let chunks = [
            chunk(b"VP8X", &[0b1100, 0, 0, 0, 1, 0, 0, 1, 0, 0]),
            chunk(b"VP8 ", b"the picture!"),
            chunk(b"EXIF", SECRET),
        ];
        let chunks = chunks.concat();
        let size = u32::try_from(chunks.len() + 4).unwrap().to_le_bytes();
        let file = [&b"RIFF"[..], &size, b"WEBP", &chunks].concat();
        let clean = without_metadata(&file).unwrap();
        assert!(!has(&clean, SECRET));
        assert!(has(&clean, b"the picture!"));
        assert_eq!(clean[20], 0, "the flags");
        let size = u32::from_le_bytes(clean[4..8].try_into().unwrap());
        assert_eq!(usize::try_from(size).unwrap(), clean.len() - 8);
    }

    proptest! {
        #[test]
        fn broken_files_are_no_pictures(
            mut file in prop::collection::vec(any::<u8>(), 0..200),
            like in 0..3,
        ) {
            let head: &[u8] = match like {
                0 => b"\xff\xd8\xff\xe1\0\x20Exif\0\0MM",
                1 => b"\x89PNG\r\n\x1a\n\0\0\0\x04",
                _ => b"RIFF\0\0\0\0WEBPEXIF",
            };
            file.splice(0..0, head.iter().copied());
            let _ = without_metadata(&file);
        }
    }
}
