//! What a page says of itself, in its `<title>` and `<meta>` elements: pure, in one pass, without a tree, so that
//! nothing that a page contains can cost more than reading it.

/// What a page says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) title: Option<String>,
    /// Names and contents of `<meta>` elements, in order.
    pub(super) meta: Vec<(String, String)>,
}

/// The most `<meta>` elements that are read.
const MOST_META: usize = 200;
/// The longest text that is kept, in characters.
const LONGEST: usize = 1000;

impl Page {
    pub(super) fn read(html: &str) -> Self {
        let mut page = Self::default();
        let mut rest = html;
        while let Some((_, tag)) = rest.split_once('<') {
            rest = tag;
            if let Some(comment) = tag.strip_prefix("!--") {
                rest = comment.split_once("-->").map_or("", |(_, rest)| rest);
                continue;
            }
            let end = tag.find(|c: char| !c.is_ascii_alphanumeric());
            let (name, after) = tag.split_at(end.unwrap_or(tag.len()));
            match name.to_ascii_lowercase().as_str() {
                "script" | "style" | "noscript" | "template" | "svg" => {
                    rest = after_end(after, name).1;
                }
                "title" if page.title.is_none() => {
                    let content = after.split_once('>').map_or("", |(_, content)| content);
                    let (title, after) = after_end(content, name);
                    page.title = Some(text(title)).filter(|title| !title.is_empty());
                    rest = after;
                }
                "meta" if page.meta.len() < MOST_META => {
                    let (attributes, after) = attributes(after);
                    page.meta.extend(meta(&attributes));
                    rest = after;
                }
                _ => {}
            }
        }
        page
    }

    /// The content of the first `<meta>` element of a name.
    pub(super) fn meta(&self, name: &str) -> Option<&str> {
        let found = self
            .meta
            .iter()
            .find(|(n, content)| n == name && !content.is_empty());
        found.map(|(_, content)| content.as_str())
    }
}

/// Which characters the bytes of a page stand for, by what its first bytes say.
pub(super) fn charset(start: &[u8]) -> Option<String> {
    let start = start.get(..1024).unwrap_or(start);
    let start = String::from_utf8_lossy(start).to_ascii_lowercase();
    let (_, after) = start.split_once("charset")?;
    let value = after.trim_start().strip_prefix('=')?.trim_start();
    let value = value.trim_start_matches(['"', '\'']);
    let end = value.find(|c: char| !c.is_ascii_alphanumeric() && !"-_:".contains(c));
    Some(value.split_at(end.unwrap_or(value.len())).0.to_owned())
}

/// What is before the end of an element, and after it; an element without end goes on to the end.
fn after_end<'a>(content: &'a str, name: &str) -> (&'a str, &'a str) {
    let mut from = 0;
    while let Some(at) = content.get(from..).and_then(|rest| rest.find("</")) {
        let at = from + at;
        let tag = content.get(at + 2..).unwrap_or_default();
        let named = tag
            .get(..name.len())
            .is_some_and(|n| n.eq_ignore_ascii_case(name));
        if named {
            return (content.get(..at).unwrap_or_default(), tag);
        }
        from = at + 2;
    }
    (content, "")
}

/// The attributes of a tag, and what is after it.
fn attributes(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '/');
        if let Some(after) = rest.strip_prefix('>') {
            return (found, after);
        }
        let end = rest.find(|c: char| c.is_ascii_whitespace() || "=>/".contains(c));
        let Some(end) = end else {
            return (found, "");
        };
        // An equals sign without a name is one.
        let (name, after) = rest.split_at(end.max(usize::from(rest.starts_with('='))));
        let Some(value) = after.trim_start().strip_prefix('=') else {
            found.push((name.to_ascii_lowercase(), String::new()));
            rest = after;
            continue;
        };
        let value = value.trim_start();
        let quote = value.chars().next().filter(|c| "\"'".contains(*c));
        let (value, after) = if let Some(quote) = quote {
            let inner = value.get(1..).unwrap_or_default();
            inner.split_once(quote).unwrap_or((inner, ""))
        } else {
            let end = value.find(|c: char| c.is_ascii_whitespace() || c == '>');
            value.split_at(end.unwrap_or(value.len()))
        };
        found.push((name.to_ascii_lowercase(), text(value)));
        rest = after;
    }
}

fn meta(attributes: &[(String, String)]) -> Option<(String, String)> {
    let attribute = |name: &str| {
        let found = attributes.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    };
    let name = attribute("property").or_else(|| attribute("name"))?;
    let content = attribute("content")?;
    Some((name.trim().to_ascii_lowercase(), content.to_owned()))
}

/// Text without entities, superfluous space and superfluous length.
fn text(raw: &str) -> String {
    let mut text = String::new();
    for word in raw.split_whitespace() {
        if !text.is_empty() {
            text.push(' ');
        }
        decode(word, &mut text);
        // What is cut here is far more than anybody shows.
        if text.len() > LONGEST * 4 {
            break;
        }
    }
    let text = text.trim();
    text.chars()
        .take(LONGEST)
        .filter(|c| !c.is_control())
        .collect()
}

fn decode(word: &str, text: &mut String) {
    let mut rest = word;
    while let Some((before, entity)) = rest.split_once('&') {
        text.push_str(before);
        let name = entity.split_once(';').filter(|(name, _)| name.len() <= 10);
        let known = name.and_then(|(name, after)| Some((character(name)?, after)));
        let (character, after) = known.unwrap_or(('&', entity));
        text.push(character);
        rest = after;
    }
    text.push_str(rest);
}

/// The entities that pages of today still use, and all numbers.
fn character(name: &str) -> Option<char> {
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => number.parse(),
        };
        return char::from_u32(code.ok()?);
    }
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => ' ',
        "ndash" => '–',
        "mdash" => '—',
        "hellip" => '…',
        "lsquo" => '‘',
        "rsquo" => '’',
        "ldquo" => '“',
        "rdquo" => '”',
        "laquo" => '«',
        "raquo" => '»',
        "middot" => '·',
        "bull" => '•',
        "copy" => '©',
        "reg" => '®',
        "trade" => '™',
        "euro" => '€',
        "auml" => 'ä',
        "ouml" => 'ö',
        "uuml" => 'ü',
        "Auml" => 'Ä',
        "Ouml" => 'Ö',
        "Uuml" => 'Ü',
        "szlig" => 'ß',
        "eacute" => 'é',
        "egrave" => 'è',
        "agrave" => 'à',
        "ccedil" => 'ç',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_page_says() {
        let page = Page::read(
            "<!DOCTYPE html><html><!-- <title>No</title> --><HEAD><script>'<title>No</title>'</script>
             <Title lang=en>A &amp; B &#8211; &#x43;\n  &unknown; &</Title><title>Second</title>
             <meta property='og:title' content=\"It's\">
             <META CONTENT=bare NAME=Description /><meta name=empty content><meta charset=utf-8>
             <meta property=og:image content=/a.png></head>",
        );
        assert_eq!(page.title.as_deref(), Some("A & B – C &unknown; &"));
        assert_eq!(page.meta("og:title"), Some("It's"));
        assert_eq!(page.meta("description"), Some("bare"));
        assert_eq!(page.meta("og:image"), Some("/a.png"));
        assert_eq!(page.meta("empty"), None);
    }

    #[test]
    fn charsets() {
        for (start, expected) in [
            ("<meta charset=\"Shift_JIS\">", Some("shift_jis")),
            (
                "<meta content='text/html; charset=windows-1251' >",
                Some("windows-1251"),
            ),
            ("<?xml version='1.0'?>", None),
        ] {
            assert_eq!(charset(start.as_bytes()).as_deref(), expected);
        }
    }

    /// Each of these is read once, from the beginning to the end.
    #[test]
    fn no_page_costs_much() {
        for piece in [
            "<",
            "<div>",
            "<meta ",
            "<meta a=\"",
            "<!--",
            "</title",
            "<title>",
            "&#",
            "=<meta = ",
        ] {
            Page::read(&piece.repeat(1_000_000 / piece.len()));
        }
        let long = format!("<title>{}</title>", "word ".repeat(200_000));
        assert_eq!(Page::read(&long).title.unwrap().chars().count(), LONGEST);
    }

    proptest! {
        #[test]
        fn nonsense_is_no_panic(html in "(<|>|/|=|\"|'|&|#|;|!--|meta|title|og:a|content|property| |é)*") {
            Page::read(&html);
            charset(html.as_bytes());
        }
    }
}
