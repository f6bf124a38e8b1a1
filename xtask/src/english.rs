//! Small pieces of English grammar: articles, lists, capitals.

/// `a` or `an`, by the first sound as far as its spelling tells.
pub(crate) fn article(word: &str) -> &'static str {
    let lower = word.to_ascii_lowercase();
    let starts = |list: &[&str]| list.iter().any(|prefix| lower.starts_with(prefix));
    if starts(&["uni", "use", "usu", "uti", "ura", "eu", "ewe", "one-", "once", "ubi"]) || lower == "one" {
        let un_plus_i = starts(&["unin", "unim", "unid", "unill", "unint"]);
        return if un_plus_i { "an" } else { "a" };
    }
    if starts(&["hour", "honest", "honor", "honour", "heir", "a", "e", "i", "o", "u"]) { "an" } else { "a" }
}

/// The word with its article: `a dog`, `an owl`.
pub(crate) fn with_article(word: &str) -> String {
    format!("{} {word}", article(word))
}

/// `x`, `x and y`, `x, y and z`.
pub(crate) fn list(words: &[impl AsRef<str>]) -> String {
    let Some((last, rest)) = words.split_last() else { return String::new() };
    if rest.is_empty() {
        return last.as_ref().to_owned();
    }
    let rest: Vec<&str> = rest.iter().map(AsRef::as_ref).collect();
    format!("{} and {}", rest.join(", "), last.as_ref())
}

/// The text with its first letter in upper case.
pub(crate) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The text as a sentence: a capital first, a full stop last unless it ends a sentence already.
pub(crate) fn sentence(text: &str) -> String {
    let text = capital(text);
    if text.ends_with(['.', '!', '?']) { text } else { text + "." }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn articles_follow_the_sound() {
        for word in ["owl", "hour", "uninhabited place", "heirloom", "umbrella"] {
            assert_eq!(article(word), "an", "{word}");
        }
        for word in ["dog", "unit", "European", "user", "one-way street", "house"] {
            assert_eq!(article(word), "a", "{word}");
        }
    }

    #[test]
    fn lists_end_in_and() {
        assert_eq!(list(&["x"]), "x");
        assert_eq!(list(&["x", "y", "z"]), "x, y and z");
    }

    #[test]
    fn sentences_end_once() {
        assert_eq!(sentence("is it?"), "Is it?");
        assert_eq!(sentence("a dog"), "A dog.");
    }
}
