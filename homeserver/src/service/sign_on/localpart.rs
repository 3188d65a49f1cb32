//! Names of users, from names that other systems know
//! ([spec](https://spec.matrix.org/v1.19/appendices/#mapping-from-other-character-sets)).

/// The part before the colon. Different names that differ in more than upper and lower case stay different.
pub(super) fn localpart(name: &str) -> String {
    let mut localpart = String::new();
    for (index, byte) in name.to_lowercase().bytes().enumerate() {
        // Names that begin with an underscore belong to application services.
        let plain =
            byte.is_ascii_alphanumeric() || b"-.".contains(&byte) || (byte == b'_' && index > 0);
        if plain {
            localpart.push(char::from(byte));
        } else {
            localpart.push('=');
            let digits = [byte >> 4, byte & 15].into_iter();
            localpart.extend(digits.filter_map(|digit| char::from_digit(digit.into(), 16)));
        }
    }
    localpart
}

#[cfg(test)]
mod tests {
    use super::localpart;

    #[test]
    fn names() {
        for (name, expected) in [
            ("cas_user!", "cas_user=21"),
            ("Alice", "alice"),
            ("_irc/x=y", "=5firc=2fx=3dy"),
            ("é", "=c3=a9"),
        ] {
            assert_eq!(localpart(name), expected);
        }
    }
}
