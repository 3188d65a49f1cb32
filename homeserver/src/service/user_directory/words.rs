//! The words by which users are found: pure.

use std::collections::BTreeSet;

use ruma::UserId;

use crate::storage::search_words::text::is_unspaced;

/// How many words of a name count.
const MOST_WORDS: usize = 32;
/// How many words are searched for at once.
const MOST_PREFIXES: usize = 8;
/// How many characters of a word count.
const LONGEST: usize = 48;

/// A text as it is compared.
pub(super) fn fold(text: &str) -> String {
    text.to_lowercase()
}

/// The words of what a user is called. Scripts that set no spaces between words are found from every character
/// on.
pub(super) fn of_user(user_id: &UserId, display_name: Option<&str>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let texts = [
        display_name.unwrap_or_default(),
        user_id.localpart(),
        user_id.server_name().as_str(),
    ];
    for text in texts {
        for word in words(text).take(MOST_WORDS) {
            if word.contains(is_unspaced) {
                let starts = word.char_indices().map(|(at, _)| at);
                found.extend(starts.filter_map(|at| word.get(at..)).map(str::to_owned));
            } else {
                found.insert(word);
            }
        }
    }
    found
}

/// What is searched for: the beginnings of words, all of which must fit.
pub(super) fn prefixes(term: &str) -> Vec<String> {
    let found: BTreeSet<_> = words(term).collect();
    found.into_iter().take(MOST_PREFIXES).collect()
}

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    let parts = text.split(|c: char| !c.is_alphanumeric());
    parts
        .filter(|part| !part.is_empty())
        .map(|part| fold(part).chars().take(LONGEST).collect())
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    fn finds(display_name: &str, term: &str) -> bool {
        let words = of_user(user_id!("@al_ice7:one.test"), Some(display_name));
        let prefixes = prefixes(term);
        !prefixes.is_empty()
            && prefixes
                .iter()
                .all(|prefix| words.iter().any(|word| word.starts_with(prefix)))
    }

    #[test]
    fn users_are_found_by_the_beginnings_of_their_words() {
        for term in [
            "ali",
            "WONDER",
            "alice wond",
            "wond alice",
            "@al_ice7:one.test",
            "al_ice",
            "ÉTÉ",
            "O'Neil",
            "one.test",
        ] {
            assert!(finds("Alice O'Neill, Wonderland Été", term), "{term}");
        }
        for term in ["lice", "alice bob", "", "  ", "@", "%"] {
            assert!(!finds("Alice O'Neill, Wonderland Été", term), "{term}");
        }
    }

    #[test]
    fn scripts_without_spaces_are_found_from_every_character_on() {
        assert!(finds("東京太郎", "太郎"));
        assert!(!finds("東京太郎", "郎太"));
    }
}
