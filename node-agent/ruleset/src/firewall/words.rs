//! A rule as iptables prints it → its words.

/// Splits a rule into words; a quoted comment stays one word.
pub(crate) fn words(rule: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = rule.trim_start();
    while !rest.is_empty() {
        let end = if let Some(quoted) = rest.strip_prefix('"') {
            let mut escaped = false;
            let close = quoted.char_indices().find(|(_, c)| {
                let closes = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                closes
            });
            close.map_or(rest.len(), |(at, _)| at + 2)
        } else {
            rest.find(' ').unwrap_or(rest.len())
        };
        words.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_a_quoted_comment_together() {
        assert_eq!(
            words(r#"-m comment --comment "a \"b\" -j c" -j X"#),
            ["-m", "comment", "--comment", r#""a \"b\" -j c""#, "-j", "X"]
        );
        assert_eq!(words(r#"--comment "open"#), ["--comment", r#""open"#]);
        assert_eq!(words(r#"--comment "" -j X"#), ["--comment", r#""""#, "-j", "X"]);
        assert_eq!(words(r#"--comment "\\" -j X"#), ["--comment", r#""\\""#, "-j", "X"]);
    }
}
