//! What is searched for, and how well a text fits: pure.

use std::cmp::Reverse;

use crate::storage::search_words::text::words;

/// How many words are searched for.
const MOST_WORDS: usize = 32;
/// How many of them the index is asked for.
const MOST_INDEXED: usize = 8;
/// A word counts half if it stands once in a text of so many words.
const USUAL_LENGTH: f64 = 20.0;

/// Words and sequences of words, all of which must be in a text.
#[derive(Clone, PartialEq)]
pub(crate) struct Query {
    /// Words that must stand next to each other, in this order.
    phrases: Vec<Vec<String>>,
    highlights: Vec<String>,
}

impl Query {
    /// Reads what a person wrote. Quotes hold words together, and so does writing them without a space, as in
    /// `e-mail`; nothing else means anything.
    pub(crate) fn parse(term: &str) -> Self {
        let mut query = Self {
            phrases: Vec::new(),
            highlights: Vec::new(),
        };
        let mut left = MOST_WORDS;
        for (index, part) in term.split('"').enumerate() {
            let quoted = (index % 2 == 1).then_some(part);
            let apart = quoted.is_none().then(|| part.split_whitespace());
            for piece in quoted.into_iter().chain(apart.into_iter().flatten()) {
                let mut phrase = words(piece);
                phrase.truncate(left);
                left -= phrase.len();
                if phrase.is_empty() {
                    continue;
                }
                let bare =
                    piece.trim_matches(|c: char| c.is_ascii_punctuation() || c.is_whitespace());
                let highlight = bare.to_lowercase();
                if !query.highlights.contains(&highlight) {
                    query.highlights.push(highlight);
                }
                if !query.phrases.contains(&phrase) {
                    query.phrases.push(phrase);
                }
            }
        }
        query
    }

    /// What a client should point out in what was found.
    pub(crate) fn highlights(&self) -> &[String] {
        &self.highlights
    }

    /// The words to ask the index for: those that are long, and so probably rare, first.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut found: Vec<_> = self.phrases.iter().flatten().cloned().collect();
        found.sort_by_cached_key(|word| (Reverse(word.len()), word.clone()));
        found.dedup();
        found.truncate(MOST_INDEXED);
        found
    }

    /// How well a text fits, between 0 and 1; `None` if it does not.
    pub(crate) fn rank(&self, text: &str) -> Option<f64> {
        let text = words(text);
        let length = f64::from(u32::try_from(text.len()).unwrap_or(u32::MAX)) / USUAL_LENGTH;
        let mut sum = 0.0;
        for phrase in &self.phrases {
            let found = text
                .windows(phrase.len())
                .filter(|window| window == phrase)
                .count();
            let found = f64::from(u32::try_from(found).unwrap_or(u32::MAX));
            if found == 0.0 {
                return None;
            }
            sum += found / (found + length);
        }
        let phrases = u32::try_from(self.phrases.len()).unwrap_or(u32::MAX);
        (phrases > 0).then(|| sum / f64::from(phrases))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(term: &str, text: &str) -> bool {
        Query::parse(term).rank(text).is_some()
    }

    #[test]
    fn all_words_must_be_there() {
        for term in [
            "martians",
            "MEN martians",
            "\"martians and men\"",
            "men,",
            "mar\u{0}tians and",
            "-men",
        ] {
            assert_eq!(
                fits(term, "Of martians and men"),
                !term.contains('\0'),
                "{term:?}"
            );
        }
        for term in [
            "martian",
            "women",
            "\"men and martians\"",
            "\"martians men\"",
            "",
            "\"\"",
            "!?",
            "\"",
        ] {
            assert!(!fits(term, "Of martians and men"), "{term:?}");
        }
        assert!(fits("本語", "これは日本語です") && !fits("語本", "これは日本語です"));
        assert!(fits("e-mail", "an E-Mail") && !fits("e-mail", "mail to e"));
    }

    #[test]
    fn what_says_it_more_often_or_says_less_else_fits_better() {
        let query = Query::parse("tea");
        let rank = |text| query.rank(text).unwrap_or_default();
        assert!(rank("tea tea") > rank("tea time"));
        assert!(rank("tea") > rank("tea and many other things"));
        assert!(rank("tea") < 1.0 && rank("coffee") < f64::EPSILON);
    }

    #[test]
    fn a_query_is_bounded() {
        let query = Query::parse(
            &(0..1_000)
                .map(|n| n.to_string())
                .collect::<Vec<_>>()
                .join(" "),
        );
        assert_eq!(query.words().len(), MOST_INDEXED);
        assert_eq!(query.phrases.len(), MOST_WORDS);
        assert_eq!(
            Query::parse("b \"a b\" b A, a").highlights(),
            ["b", "a b", "a"]
        );
        assert_eq!(Query::parse("b \"aa b\" b").words(), ["aa", "b"]);
    }
}
