//! Glob patterns of push rules
//! ([spec](https://spec.matrix.org/v1.19/appendices/#glob-style-matching)).
//!
//! Patterns come from users and texts from anybody, so matching takes time in proportion to the text:
//! the parts between asterisks are looked for one after the other, and never again.

/// How many characters are compared, at most, to find the parts of one pattern that have question marks.
const PATIENCE: usize = 1_000_000;

/// A pattern, in lower case, cut at its asterisks.
#[derive(Clone, Debug)]
pub(super) struct Glob {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    /// Just this.
    Text(String),
    /// With question marks.
    Masked(Vec<char>),
}

impl Glob {
    pub(super) fn new(pattern: &str) -> Self {
        let parts = pattern.split('*').map(|part| {
            let part = part.to_lowercase();
            if part.contains('?') {
                Part::Masked(part.chars().collect())
            } else {
                Part::Text(part)
            }
        });
        Self {
            parts: parts.collect(),
        }
    }

    /// A pattern that stands for itself.
    pub(super) fn literal(text: &str) -> Self {
        Self {
            parts: vec![Part::Text(text.to_lowercase())],
        }
    }

    /// Whether all of a text, in lower case, is as the pattern says.
    pub(super) fn matches(&self, text: &str) -> bool {
        self.find(text, |at| at == 0, |end| end == text.len())
    }

    /// Whether a part of a text, in lower case, that begins and ends at the bounds of words is as the
    /// pattern says.
    pub(super) fn matches_words(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        let is_word = |index: usize| {
            let byte = bytes.get(index);
            byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        };
        let starts = |at: usize| at.checked_sub(1).is_none_or(|before| !is_word(before));
        self.find(text, starts, |end| !is_word(end))
    }

    /// The first part must begin where `starts` allows it, the last end where `ends` does. Taking each
    /// of the others at the first place where it occurs leaves the most room for what follows.
    fn find(
        &self,
        text: &str,
        starts: impl Fn(usize) -> bool,
        ends: impl Fn(usize) -> bool,
    ) -> bool {
        let mut patience = PATIENCE;
        let (Some(first), Some(last)) = (self.parts.first(), self.parts.last()) else {
            return false;
        };
        if self.parts.len() == 1 {
            let both = |at: usize, end: usize| starts(at) && ends(end);
            return first.find(text, 0, both, &mut patience).is_some();
        }
        let Some(mut at) = first.find(text, 0, |at, _| starts(at), &mut patience) else {
            return false;
        };
        for part in self.parts.iter().take(self.parts.len() - 1).skip(1) {
            match part.find(text, at, |_, _| true, &mut patience) {
                Some(end) => at = end,
                None => return false,
            }
        }
        last.find(text, at, |_, end| ends(end), &mut patience)
            .is_some()
    }
}

impl Part {
    /// The end of the first occurrence from `from` on that is `wanted`.
    fn find(
        &self,
        text: &str,
        from: usize,
        wanted: impl Fn(usize, usize) -> bool,
        patience: &mut usize,
    ) -> Option<usize> {
        let mut from = from;
        loop {
            let rest = text.get(from..)?;
            let at = match self {
                Self::Text(part) => from + rest.find(part.as_str())?,
                Self::Masked(_) => from,
            };
            if let Some(length) = self.length_at(text.get(at..)?, patience)
                && wanted(at, at + length)
            {
                return Some(at + length);
            }
            // What does not begin here may begin at the next character.
            from = at + text.get(at..)?.chars().next()?.len_utf8();
            *patience = patience.checked_sub(1)?;
        }
    }

    /// How long the part is if `text` begins with it.
    fn length_at(&self, text: &str, patience: &mut usize) -> Option<usize> {
        match self {
            Self::Text(part) => text.starts_with(part.as_str()).then_some(part.len()),
            Self::Masked(mask) => {
                let mut characters = text.chars();
                for wanted in mask {
                    *patience = patience.checked_sub(1)?;
                    let found = characters.next()?;
                    if *wanted != '?' && *wanted != found {
                        return None;
                    }
                }
                Some(text.len() - characters.as_str().len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whole_values() {
        let matches = |pattern: &str, text: &str| Glob::new(pattern).matches(&text.to_lowercase());
        for (pattern, text) in [
            ("lunc?*", "Lunch plans"),
            ("lunc?*", "LUNCH"),
            ("*", ""),
            ("", ""),
            ("a*b*c", "aXbXbXc"),
            ("*ab", "abab"),
            ("?", "ä"),
            ("a*a", "aa"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("lunc?*", " lunch"),
            ("lunc?*", "lunc"),
            ("", "x"),
            ("a*a", "a"),
            ("m.room.message", "m.room.messages"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn words() {
        let matches =
            |pattern: &str, text: &str| Glob::new(pattern).matches_words(&text.to_lowercase());
        for (pattern, text) in [
            ("ex*ple", "An example event."),
            ("ex*ple", "exple"),
            ("ex*ple", "An exciting triple-whammy"),
            ("cake", "CAKE!"),
            ("cake", "cakes and cake"),
            ("@room", "hello @room: all"),
            ("*", "anything"),
            ("ca?e", "the cave."),
            ("über", "(über)"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("cake", "cakes"),
            ("cake", "pan_cake"),
            ("ex*ple", "An exciting triples"),
            ("ex*ple", "An unexciting triple2"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn patterns_that_are_meant_to_take_long_do_not() {
        let text = "a".repeat(65_000);
        for pattern in ["*a*a*a*a*a*a*b", "a?a?a?a?a?*?a?a?a?b", &"?a".repeat(500)] {
            assert!(!Glob::new(&format!("{pattern}c")).matches(&text));
            assert!(!Glob::new(&format!("{pattern}c")).matches_words(&text));
        }
    }

    /// What a pattern means, word for word.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => (0..=text.len()).any(|skip| naive(rest, &text[skip..])),
            (Some(('?', rest)), Some((_, text))) => naive(rest, text),
            (Some((wanted, rest)), Some((found, text))) => wanted == found && naive(rest, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_mean_what_they_say(pattern in "[ab*? ]{0,8}", text in "[ab _é]{0,10}") {
            let pattern_chars: Vec<_> = pattern.chars().collect();
            let chars: Vec<_> = text.chars().collect();
            let glob = Glob::new(&pattern);
            prop_assert_eq!(glob.matches(&text), naive(&pattern_chars, &chars));
            let word = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
            let bound = |at: usize, before: bool| {
                let c = if before { at.checked_sub(1).and_then(|at| chars.get(at)) } else { chars.get(at) };
                !c.is_some_and(word)
            };
            let words = (0..=chars.len()).any(|start| (start..=chars.len()).any(|end| {
                bound(start, true) && bound(end, false) && naive(&pattern_chars, &chars[start..end])
            }));
            prop_assert_eq!(glob.matches_words(&text), words);
        }
    }
}
